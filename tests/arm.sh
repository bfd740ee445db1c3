#!/bin/sh
# The program built for AArch64, under emulation; `make arm-test` builds it and calls this. On a processor with dot
# products and on one without: every kernel against the portable one, the session's promises, and the shipped model's
# greedy text, which must be that of the native program with --exact. The last bits differ from another instruction
# set's, and activations in bytes round more, so where two tokens are about as likely either could come first: this text
# has no such place. The two tables of AArch64 give the same bits.
set -eu
QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu} # where Debian's cross compiler has its libc
export QEMU_LD_PREFIX

fail()
{
    echo "arm-test: $*" >&2
    exit 1
}

text()
{
    "$@" models/tales.bin -i "Once upon a time" -n 64 --temp 0
}

# check CPU TABLE HALF: the table that it should choose; the half of the session's variants that it tests
check()
{
    run="qemu-aarch64 -cpu $1 build-arm/run"
    qemu-aarch64 -cpu "$1" build-arm/test_kernels neon "$2" # fails unless both were tested
    qemu-aarch64 -cpu "$1" build-arm/test_session "$2" "$3"
    $run models/tales.bin -i a -n 1 -v 2>&1 > /dev/null | grep -q "kernels $2," || fail "$1 does not choose $2"
    for exact in "" --exact; do
        got=$(text $run $exact --logits "$dir/$2$exact.npy")
        [ "$got" = "$want" ] || fail "$1 $exact wrote: $got"
    done
    echo "arm-test: $2 on $1 writes what the native program writes"
}

dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
want=$(text ./run --exact)
[ ${#want} -gt 200 ] || fail "the native program wrote: $want"
qemu-aarch64 -cpu max build-arm/test_threads
qemu-aarch64 -cpu max build-arm/test_sampler
qemu-aarch64 -cpu max build-arm/test_tokenizer
check max dotprod 0
check cortex-a53 neon 1
cmp "$dir/neon.npy" "$dir/dotprod.npy" && cmp "$dir/neon--exact.npy" "$dir/dotprod--exact.npy" || fail "the tables' logits differ"
RUN_CPU=dotprod qemu-aarch64 -cpu cortex-a53 build-arm/run models/tales.bin -i a 2>&1 | grep -q "want one of: scalar, neon$" \
    || fail "cortex-a53 takes kernels that it cannot run"
