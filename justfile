# The usual commands, for `just` (https://just.systems); each is what CONTRIBUTING.md says.

# the bundled model on the bundled scans
demo:
    bash .ci/demo

# all tests, as CI runs them
test:
    bash .ci/test

# one test binary: just one windows FILTER
one NAME *FILTER:
    cargo test --release --locked --test {{NAME}} {{FILTER}}

# what CI refuses before it tests
lint:
    cargo fmt --check
    cargo clippy --release --locked --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

# machine code of the kernels against the committed table
isa:
    bash benches/isa/check

# every kernel beside its twin on aarch64, under qemu
aarch64:
    bash .ci/aarch64

# layers and networks beside PyTorch: just peers --pairs 3
peers *ARGS:
    bash benches/peers/run host --sides host,torch {{ARGS}}
