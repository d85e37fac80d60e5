# The two commands of the README, and every step of CI, as targets. `make help` lists them.

LAB := containerlab/labs/two-clusters/two-clusters.clab.yml
TOMBOLO := target/debug/tombolo

# How long the lab's etcd stays down in the fault checks.
ETCD_DOWN_SECS ?= 60

.DEFAULT_GOAL := help
.PHONY: peerings help demo test setup build check fmt clippy unit fuzz-bgp fuzz-mesh fuzz-dns fuzz-datapath fuzz-policy bench-dns programs soak-datapath namespaces mesh soak interop bench-bfd bench-bfd-short bench-bgp bench-bgp-short bench-mesh bench-mesh-short bench-datapath bench-datapath-short lab mesh-lab lab-up lab-test lab-down

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: setup build ## Bring the two-cluster lab up, check everything, leave it up
	@scripts/demo $(TOMBOLO) $(LAB) $(ETCD_DOWN_SECS)

test: setup build unit programs namespaces mesh interop bench-bfd-short bench-bgp-short bench-mesh-short bench-datapath-short lab mesh-lab peerings ## The whole test suite, unit to real peers

setup: ## Install what is missing (Debian packages)
	@scripts/setup

build: ## Build the one binary
	cargo build --locked --workspace --bin tombolo

check: fmt clippy ## Format and lints, warnings as errors

fmt: ## rustfmt, checking only
	cargo fmt --all --check

clippy: ## clippy, warnings as errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

# Every group is selected out of the whole workspace: one set of features, so nothing is compiled twice.
TEST := cargo test --locked --workspace

unit: ## Pure code: unit, property, golden and mutation tests, the architecture, the docs
	$(TEST) --lib --bins
	$(TEST) --doc
	$(TEST) --test architecture --test mutation --test live --test golden --test peers --test round_trip --test differential --test zettabgp --test decode_speed --test wire --test serve --test fuzz_policy --test policy

fuzz-bgp: ## 10 million damaged BGP messages through the codec, and over live sessions (TOMBOLO_SEED=n for others)
	TOMBOLO_BGP_MUTATIONS=10000000 $(TEST) --test mutation -- --nocapture
	TOMBOLO_BGP_MUTATIONS=10000000 $(TEST) --test live -- --nocapture damage
	TOMBOLO_BGP_DIFFERENCES=2000000 $(TEST) --test differential -- --nocapture

fuzz-mesh: ## 10 million damaged cluster mesh values (TOMBOLO_SEED=n for others)
	TOMBOLO_MESH_MUTATIONS=10000000 $(TEST) --test wire -- --nocapture no_damage

fuzz-dns: ## 10 million damaged packets through the DNS unit (TOMBOLO_SEED=n for others)
	TOMBOLO_DNS_MUTATIONS=10000000 $(TEST) --test serve -- --nocapture damaged

fuzz-datapath: ## 400,000 packets, valid, damaged and made up, through every program (TOMBOLO_SEED=n for others)
	TOMBOLO_CASES=400000 $(TEST) --test fuzz -- --nocapture

fuzz-policy: ## 10,000 damaged policy manifests through parser and compiler, beside the specification (TOMBOLO_SEED=n for others)
	TOMBOLO_CASES=10000 $(TEST) --test fuzz_policy -- --nocapture

bench-dns: ## Questions per second of the DNS unit over loopback
	cargo test --locked --release -p tombolo-dns --test serve -- --ignored --nocapture questions_per_second

programs: ## eBPF programs on real packets (BPF_PROG_TEST_RUN) and real traffic
	$(TEST) --test model --test paths --test why --test variants --test fuzz --test services --test node_ports --test clients --test refusals --test direct_return --test egress --test rates --test chained --test xdp --test host --test sockets --test upgrade --test traffic --test wireguard --test truth_tables

soak-datapath: ## A million random packets through programs and model (TOMBOLO_SEED=n for others)
	TOMBOLO_CASES=1000000 $(TEST) --test model -- --nocapture

namespaces: ## netlink, CNI, tunnels and the lab runner in network namespaces
	$(TEST) --test namespaces --test pods --test underlay --test lab

mesh: ## The cluster mesh with a real etcd
	$(TEST) --test mesh --test backends --test certificates --test identities --test partner --test troubleshoot --test relay --test relay_faults --test own_etcd

soak: ## Ten million steps of the followers' simulation (TOMBOLO_SEED=n for others)
	TOMBOLO_SIM_STEPS=10000000 $(TEST) --lib -- --nocapture after_any_faults

# The table of docs/interop.md is made of what the tests record in target/interop, hence first and last; the matrix mostly waits.
interop: ## BGP and BFD with real BIRD, FRR, GoBGP, OpenBGPD and ExaBGP; checks docs/interop.md (TOMBOLO_BLESS=1 writes it)
	rm -rf target/interop
	$(TEST) --test bgp_interop --test bgp_operations --test bgp_transport --test bgp_policy --test bgp_availability --test bfd_interop --test router
	$(TEST) --test bgp_matrix -- --test-threads=5
	$(TEST) --test interop_matrix -- --ignored

bench-bfd: ## 64 BFD sessions at 50 ms x 3 under full load, beside FRR's bfdd; writes target/bench/bfd.json
	cargo build --locked --workspace --bin bench_bfd
	target/debug/bench_bfd

bench-bfd-short: ## The same, one short run of each (CI)
	cargo build --locked --workspace --bin bench_bfd
	target/debug/bench_bfd short

bench-bgp: ## Whole tables through the speaker, beside BIRD, FRR, GoBGP and OpenBGPD; writes target/bench/bgp.json
	cargo build --locked --release -p tombolo-bgp -p tombolo-tests --example router --bin bench_bgp
	target/release/bench_bgp

bench-bgp-short: ## The same with small tables, one run of each (CI)
	cargo build --locked --workspace --example router --bin bench_bgp
	target/debug/bench_bgp short

bench-mesh: ## The mesh of Cilium's scale test and a million endpoints, beside a bare etcd client; writes target/bench/mesh.json
	cargo build --locked --release -p tombolo-tests --bin bench_mesh
	target/release/bench_mesh

bench-mesh-short: ## The same with a small mesh, one run of each (CI)
	cargo build --locked --workspace --bin bench_mesh
	target/debug/bench_mesh short

bench-datapath: ## The datapath beside plain routing, VXLAN with bridges, iptables, nftables and ipset; writes target/bench/datapath.json
	cargo build --locked --release -p tombolo-tests --bin bench_datapath
	target/release/bench_datapath

bench-datapath-short: ## The same with few of everything, one round of each (CI)
	cargo build --locked --workspace --bin bench_datapath
	target/debug/bench_datapath short

lab: build ## The two-cluster lab: all path variants and faults, then nothing is left behind
	@scripts/lab $(TOMBOLO) $(LAB) $(ETCD_DOWN_SECS)

mesh-lab: build ## Three clusters: one joins and leaves, and everything that can happen to an etcd, beside connections between all
	@scripts/mesh-lab $(TOMBOLO) containerlab/labs/mesh/mesh.clab.yml $(ETCD_DOWN_SECS)

peerings: build ## The lab with the other ways to peer: BFD, over IPv6 alone (RFC 8950), unnumbered; and with a tombolo router as ToR
	@scripts/peerings $(TOMBOLO) $(LAB)

lab-up: build ## Bring the lab up (TOMBOLO_VARIANT=overlay|overlay-wireguard|direct|direct-wireguard TOMBOLO_PEERING=numbered|bfd|ipv6|unnumbered)
	$(TOMBOLO) lab up -t $(LAB)

lab-test: ## Run the checks against the running lab
	$(TOMBOLO) lab test -t $(LAB)

lab-down: ## Take the lab down; says what is left of it (nothing)
	$(TOMBOLO) lab down -t $(LAB)
