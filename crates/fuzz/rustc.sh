#!/bin/sh
# What `cargo xtask fuzz` sets as RUSTC_WORKSPACE_WRAPPER: the crates under test report every edge they take and every
# comparison they make, to the functions of src/coverage.rs. Works with a stable compiler. Dependencies are shared
# with ordinary builds; what is built through here has file names of its own.
case " $* " in
*" --crate-name machinery "* | *" --crate-name dns "* | *" --crate-name fuzz_targets "*)
    exec "$@" -Copt-level=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
        -Cllvm-args=-sanitizer-coverage-trace-pc-guard -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
