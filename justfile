# An error ends with its causes; the frames of the runtime it came through would only push them out of sight. Panics keep theirs.
export RUST_LIB_BACKTRACE := env("RUST_LIB_BACKTRACE", "0")

_list:
    @"{{just_executable()}}" --list --unsorted

# Check the prerequisites; get Postgres and nats-server unless the machine has them
setup:
    @sh crates/devstack/scripts/setup.sh

# Get what the tests need beside: PgBouncer and Prometheus, unless the machine has them
setup-tests: setup
    @sh crates/devstack/scripts/fetch_pooler.sh
    @sh crates/devstack/scripts/fetch_prometheus.sh

# Start everything on this machine: `just up --help`
[no-exit-message, positional-arguments]
up *ARGS: _first setup _build
    @target/debug/souk up "$@"

# Tell the story of an order against the running system
[no-exit-message, positional-arguments]
demo *ARGS: setup _build
    @target/debug/souk demo "$@"

# Sell out a shop in sixty seconds while its machines fail, on a system of its own
[no-exit-message, positional-arguments]
drill *ARGS: setup _build
    @target/debug/souk drill "$@"

# Cut, slow and heal the ways between three regions under load, and let a fourth one join (three minutes)
[no-exit-message, positional-arguments]
drill-regions *ARGS: setup _build
    @target/debug/souk drill --regions "$@"

# Run any souk command: `just souk call SERVICE/METHOD '{json}'`
[no-exit-message, positional-arguments]
souk *ARGS: setup _build
    @target/debug/souk "$@"

# Run all tests, against real servers and processes (half an hour on a warm build)
test: setup-tests _build interleavings
    cargo test --workspace

# The same with a minute for each fault and random seeds, ten seconds of each fuzz target, and the drill; SOUK_SEED replays one (two hours)
test-long: setup-tests _build interleavings (fuzz "10") drill
    SOUK_FAULT_SECONDS=60 SOUK_SEEDS=10 cargo test --workspace -- --nocapture

# The drill of the regions, then faults within and between three of them from two hundred seeds; SOUK_SEED replays one (an hour)
test-regions: setup-tests _build drill-regions
    SOUK_SEEDS=200 cargo test --workspace --test system regions::seeded -- --nocapture

# Run the unit tests, and the whole system once (under 2 minutes on a warm build)
test-quick: setup-tests _build
    cargo test --workspace --lib --bins
    cargo test --workspace --test up one_process

# Try thousands of orders in which tasks may meet in the query service's cache
interleavings: setup
    cargo test --workspace --lib --features souk-query/shuttle interleaving_tests

# Fuzz tokens, ids, subjects, payloads and messages, SECONDS each (a few minutes to build first)
fuzz SECONDS="10": setup
    @sh crates/devstack/scripts/fuzz.sh "{{SECONDS}}"

# Test the chart: rendered by Helm 3 and 4, validated, at every size and step; needs no cluster (2 minutes)
[positional-arguments]
chart-test *ARGS: _build
    @helm/tests/run.sh -m pytest -c helm/tests/pytest.ini helm/tests "$@"

# The same against a real API server, built from Go modules: sizes, steps, immutable fields (a quarter of an hour to build first)
[positional-arguments]
chart-test-api *ARGS:
    @helm/tests/api/run.sh "$@"

# Make the chart's schema and the table of its README from values.yaml
chart-docs:
    @helm/tests/run.sh helm/tests/docs.py

# Render every size into k8s/rendered
chart-golden: chart-docs
    @helm/tests/run.sh helm/tests/golden.py

# Make the image from binaries of this machine, `just image release` a small one (needs a Docker engine)
image PROFILE="debug" TAG=("souk:" + PROFILE): setup
    @sh k8s/image/build.sh "{{PROFILE}}" "{{TAG}}"

# Run every service, the migration, the demo and an audit from the image, as in a cluster (needs a Docker engine and root)
image-test: (image "debug")
    cargo test -p souk-tests --test image -- --ignored --nocapture

# Measure ratios of Souk and its parts, `just bench growth` costs: `just bench --quick`, `just bench B1 B4`; give it the machine to itself
[positional-arguments]
bench *ARGS: setup
    cargo build --release --workspace --bin souk --bin souk-bench
    target/release/souk-bench "$@"

# Check format, lints, contracts and dependencies
check: setup
    sh crates/devstack/scripts/check.sh

_first:
    @test -x target/debug/souk || echo "The first start compiles everything, which may take up to 12 minutes on two cores."

_build:
    @cargo build --workspace --bin souk
