"""tools/evaluate.py: lm-evaluation-harness on ./run gets the numbers of its own `hf` model.

The tasks are small ones of our own in tests/tasks: choices, texts (BLEU and ROUGE) and rolling
perplexity. Nothing is loaded from the network. Both models have the same random weights; sums of
log-probabilities agree to 1e-4 (float32 on both sides), and generated texts are the same."""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hf_models as hf

pytest.importorskip("lm_eval", reason="lm_eval is in requirements-test.txt")
ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
TASKS = ["attnc_choices", "attnc_texts", "attnc_rolling"]
EXACT = "--exact --kv f32"
FORM = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and plain %}"
        "{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]\n{{ m.content | trim }}"
        "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[answer]\n{% endif %}")


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory):
    """No network, caches of its own, and the folder that the tasks' data is named from."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    patch.setenv("TOKENIZERS_PARALLELISM", "false")
    patch.chdir(ROOT)
    import datasets
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def evaluate():
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[False, True], ids=["no BOS", "BOS"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A Hugging Face folder and its export, with a tokenizer that begins texts with BOS or not."""
    import export

    end = "<|endoftext|>"
    begin = {"post_processor": {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": end, "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}}}}
    tok = hf.tokenizer_json(**begin if request.param else {}, decoder={
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})
    case = hf.Case("evaluate", hf.L, hf.base(bos_token_id=0, eos_token_id=0), "llama")
    folder = tmp_path_factory.mktemp("weights") / "hf"
    hf.save(case.build(), tok, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
        "chat_template": FORM}))
    path = folder.with_suffix(".gguf")
    assert export.main([str(folder), "-o", str(path), "--dtype", "f32"]) == 0
    return folder, path


def results_of(model: Any, **more: Any) -> dict[str, Any]:
    """What the harness finds, with every request's answer."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(ROOT / "tests" / "tasks"), include_defaults=False)
    out = simple_evaluate(model, tasks=TASKS, task_manager=manager, bootstrap_iters=0, **more)
    assert out
    return out


def hf_model(folder: Path, max_length: int) -> Any:
    from lm_eval.models.huggingface import HFLM
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1,
                max_length=max_length)


def answers(results: dict[str, Any], task: str) -> list[Any]:
    return [r for sample in sorted(results["samples"][task], key=lambda s: s["doc_id"])
            for (r,) in sample["resps"]]


CHAT = {"apply_chat_template": True, "fewshot_as_multiturn": True, "num_fewshot": 2,
        "system_instruction": "Be brief.", "limit": 8}


@pytest.mark.parametrize("max_length, more", [(250, {}), (40, {}), (400, CHAT)])
def test_equal_to_hf(max_length: int, more: dict, weights, evaluate, run_bin: Path) -> None:
    """Also with a context so short that prompts are cut and texts take several windows, and with
    questions as conversations."""
    folder, path = weights
    model = evaluate.Run(str(path), run=str(run_bin), flags=EXACT, max_length=max_length)
    ours, theirs = results_of(model, **more), results_of(hf_model(folder, max_length), **more)
    asked = [[str(s["arguments"]) for s in out["samples"][TASKS[0]]] for out in (ours, theirs)]
    assert asked[0] == asked[1] and all(("[system]" in a) == bool(more) for a in asked[0])
    assert answers(ours, TASKS[1]) == answers(theirs, TASKS[1])
    for task in TASKS:
        for name, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert abs(ours["results"][task][name] - value) < 1e-4 * max(1, abs(value)), name
    for (a, b), (c, d) in zip(answers(ours, TASKS[0]), answers(theirs, TASKS[0]), strict=True):
        assert abs(a - c) < 1e-4 and b == d
    for a, c in zip(answers(ours, TASKS[2]), answers(theirs, TASKS[2]), strict=True):
        assert abs(a - c) < 5e-4  # of more than a hundred tokens
    assert {"bleu,none", "rouge1,none", "rougeL,none"} <= set(ours["results"][TASKS[1]])
    assert len(model.processes) == 2
    model.close()


def test_requests(weights, evaluate, run_bin: Path) -> None:
    """Requests of every kind that tasks may make, among them empty contexts.

    No two are the same tokens cut at different places: these the harness's `hf` takes for one."""
    from lm_eval.api.instance import Instance

    folder, path = weights
    ours = evaluate.Run(str(path), run=str(run_bin), flags=EXACT, max_length=60)
    theirs = hf_model(folder, 60)

    def ask(kind: str, *args: tuple) -> tuple[list, list]:
        requests = [Instance(kind, {}, a, i) for i, a in enumerate(args)]
        return getattr(ours, kind)(requests), getattr(theirs, kind)(requests)

    got, want = ask("loglikelihood", ("", "In the sea"), ("Once ", "upon"),
                    ("Once", " upon a time"), ("Once\n\n", "upon"), ("", " hens " * 9),
                    ("the sea " * 40, "and rain"), ("<|endoftext|>Once", " upon"),
                    ("Once", " upon<|endoftext|>"))
    assert [g for _, g in got] == [w for _, w in want]
    assert max(abs(g - w) for (g, _), (w, _) in zip(got, want, strict=True)) < 1e-4
    got, want = ask("loglikelihood_rolling", ("Once",), ("the cat and the hens " * 20,))
    assert max(abs(g - w) for g, w in zip(got, want, strict=True)) < 5e-4
    got, want = ask("generate_until", ("Once", {"until": ["e", "z"], "max_gen_toks": 20}),
                    ("the sea " * 40, {"until": [], "max_gen_toks": 30}),
                    ("Once", {"until": "\n", "max_new_tokens": 12, "do_sample": False,
                              "temperature": 0.7}))
    assert got == want
    (text,) = ours.generate_until([Instance("generate_until", {}, (
        "Once", {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 0.7,
                 "top_k": 5, "top_p": 0.9}), 0)])
    assert text
    for bad, message in (({"max_gen_toks": 60}, "max_gen_toks"),
                         ({"max_gen_toks": 9, "num_beams": 4}, "num_beams")):
        with pytest.raises(ValueError, match=message):
            ours.generate_until([Instance("generate_until", {}, ("Once", bad), 0)])
    with pytest.raises(ValueError, match=r'JSON at byte.*"prompt": "a'):
        ours.loglikelihood([Instance("loglikelihood", {}, ("a\ud800", " b"), 0)])
    with pytest.raises(ValueError, match="60 tokens, got"):
        ours.loglikelihood([Instance("loglikelihood", {}, ("a", " the sea" * 99), 0)])
    ours.close()


def test_conversations(weights, evaluate, run_bin: Path, tmp_path: Path) -> None:
    """Their texts are those of the harness's `hf` model."""
    folder, path = weights
    theirs = hf_model(folder, 60)
    ours = evaluate.Run(str(path), run=str(run_bin))
    talk = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " é \n<|x|>"},
            {"role": "assistant", "content": " The answer is: "}]
    for n, more in ((1, True), (2, True), (3, False), (2, False)):
        want = theirs.apply_chat_template(talk[:n], more)
        assert ours.apply_chat_template(talk[:n], more) == want
    assert talk[2]["content"] == " The answer is: "
    (tmp_path / "form").write_text(FORM.replace(" | trim", ""))
    theirs.tokenizer.chat_template = (tmp_path / "form").read_text()
    theirs.chat_template_args = {"plain": True}  # which refuses the system's words
    other = evaluate.Run(str(path), run=str(run_bin), template_file=str(tmp_path / "form"),
                         template_args={"plain": True})
    for n, more in ((2, True), (3, False)):
        got = other.apply_chat_template(talk[:n], more)
        assert got == theirs.apply_chat_template(talk[:n], more) and "brief" not in got
    assert other.chat_template(True) == theirs.tokenizer.chat_template
    assert other.tokenizer_name != ours.tokenizer_name
    with pytest.raises(ValueError, match="empty"):
        ours.apply_chat_template([])


def test_many_lines(evaluate, run_bin: Path) -> None:
    """More than what pipes and the window of lines hold."""
    lines = evaluate.Lines([str(run_bin), str(TALES), "--score", "--jsonl", "-"])
    got = lines.ask([{"id": i, "prompt": "Once upon a time " * 9, "completions": []}
                     for i in range(4000)], "lines")
    assert [x["id"] for x in got] == list(range(4000))
    lines.close()


def test_the_process_ends(evaluate, run_bin: Path, tmp_path: Path) -> None:
    lines = evaluate.Lines([str(run_bin), str(tmp_path / "missing"), "--score", "--jsonl", "-"])
    with pytest.raises(RuntimeError, match="exit status 1"):
        lines.ask([{"text": "a"}] * 3, "lines")


def test_command(run_bin: Path, tmp_path: Path) -> None:
    """The command, with the harness's own flags."""
    done = subprocess.run(
        [sys.executable, "tools/evaluate.py", TALES, "--run", run_bin, f"--flags={EXACT}",
         "--include_path", "tests/tasks", "--tasks", "attnc_choices", "--limit", "4",
         "--output_path", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}, timeout=300)
    assert done.returncode == 0, done.stderr
    (saved,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(saved.read_text())
    assert "|attnc_choices|" in done.stdout.replace(" ", "")
    assert 0 <= found["results"]["attnc_choices"]["acc,none"] <= 1
    assert found["n-samples"]["attnc_choices"]["effective"] == 4
