//! The command line: what people and scripts call. Reading commands take `-o json|table`.

mod bfd;
mod bgp;
mod client;
mod commands;
mod conntrack;
pub(crate) mod dns;
mod flows;
mod mesh;
mod mesh_services;
mod mesh_view;
mod output;
mod policy;
mod relay;
mod why;

use crate::config::DEFAULT_SOCKET;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tombolo_base::ids::{ClusterName, MaxClusters};
use tombolo_clustermesh::partner::MAX_DAYS;
use tombolo_clustermesh::wire::ServicePreference;

pub(crate) use bgp::BgpCommand;
pub(crate) use commands::{Query, block_on, run};
pub(crate) use relay::{RelayArgs, RelayCommand};

/// Makes several Kubernetes clusters one network: cluster mesh, BGP, eBPF, WireGuard.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Where the agent is and how to print what it says.
#[derive(Clone, Debug, Args)]
pub(crate) struct Reading {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// The agent's local API
    #[arg(long, env = "TOMBOLO_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node daemon
    Agent {
        /// Configuration file; later ones are laid over earlier ones
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
    },
    /// Run a BGP router without pods: a ToR, a route reflector, a route server
    Router {
        /// Configuration file
        #[arg(long)]
        config: PathBuf,
    },
    /// DNS of services, a unit of its own that survives the agent
    Dns(dns::DnsArgs),
    /// Mirror the other clusters into this cluster's etcd, so that its nodes read one etcd instead of all of them
    Relay(RelayArgs),
    /// The CNI plugin; called by a container runtime through the CNI environment
    Cni,
    /// The userspace WireGuard tunnel, a unit of its own that survives the agent
    #[command(hide = true)]
    Wireguard {
        /// Handed to the unit as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// BFD, a unit of its own that survives the agent
    #[command(hide = true)]
    Bfd {
        /// Handed to the unit as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Containerlab topologies without containers: deploy, look around, check
    Lab(tombolo_containerlab::cli::LabArgs),
    #[command(flatten)]
    LabUnits(tombolo_containerlab::cli::HiddenCommand),
    #[command(flatten)]
    Workload(tombolo_containerlab::workload::WorkloadCommand),
    /// One screen: what is ready, what is not, why, and what to try
    Status {
        #[command(flatten)]
        reading: Reading,
        /// Also the reconcilers and the problems in manifests
        #[arg(long)]
        verbose: bool,
    },
    /// Any table of the agent; without a name, the names
    Show {
        /// Table name, as nodes, identities, endpoints, prefixes, services, routes, peers
        table: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// The flows that the datapath knows: look at some, or make it forget them
    #[command(subcommand)]
    Conntrack(conntrack::ConntrackCommand),
    /// What policies do to a flow, and what a policy would do to the flows there are
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// The cluster mesh
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// BGP sessions and routes
    #[command(subcommand)]
    Bgp(BgpCommand),
    /// Who talks to whom, and what was dropped and why
    Flows(Box<flows::FlowsArgs>),
    /// What becomes of a packet and why: each decision, by the model and by the programs that the kernel runs
    Why(Box<why::WhyArgs>),
    /// Configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `tombolo mesh`.
#[derive(Debug, Subcommand)]
pub(crate) enum MeshCommand {
    /// The remote clusters and how far each is read
    Status(Reading),
    /// The nodes of every cluster: addresses, pod CIDRs, path, keys, and why one is not used
    Nodes(Reading),
    /// What two clusters claim at once: who has it, since when, what to do
    Conflicts(Reading),
    /// How long a change takes from each cluster's etcd to this agent, and inside it
    Lag(Reading),
    /// The global services: which clusters export each, what is used of it, and why the rest is not
    Services(ServicesArgs),
    /// Walk the way to the remote clusters step by step: file, certificates, name, TCP, TLS, rights, heartbeat, configuration, canaries
    Troubleshoot(TroubleshootArgs),
    /// What was accepted from the remote clusters and what was refused, as JSON
    Dump(Box<DumpArgs>),
    /// Let another cluster read this one: its user, certificate and file; to be run where the CA's key is
    Connect(Box<ConnectArgs>),
    /// Put a cluster out again
    Disconnect(PartnerArgs),
}

/// Which cluster, and this cluster's etcd as its administrator.
#[derive(Debug, Args)]
pub(crate) struct PartnerArgs {
    /// The other cluster's name; with --mirrors this cluster's own
    pub(crate) partner: ClusterName,
    /// For this cluster's own agents behind a relay: reads what it mirrors here, instead of what this cluster publishes
    #[arg(long)]
    pub(crate) mirrors: bool,
    /// Configuration file of an agent of this cluster: its name, and etcd's endpoints and CA
    #[arg(long, required = true)]
    pub(crate) config: Vec<PathBuf>,
    /// Certificate of an etcd user with etcd's role root (PEM)
    #[arg(long)]
    pub(crate) cert: PathBuf,
    /// Its key (PEM)
    #[arg(long)]
    pub(crate) key: PathBuf,
}

/// `tombolo mesh connect`.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) partner: PartnerArgs,
    /// The key of the CA in agent.yaml's etcd.ca (PEM)
    #[arg(long)]
    pub(crate) ca_key: PathBuf,
    /// Where the partner reaches this cluster's etcd, if not at the endpoints in agent.yaml; may be given several times
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Vec<String>,
    /// Life of the certificate, in days
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    pub(crate) days: u32,
    /// The folder to write, for the partner's administrator
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The folder where the partner's nodes will keep the files: needed by Cilium, which wants whole paths
    #[arg(long, value_name = "DIR")]
    pub(crate) folder_there: Option<PathBuf>,
}

/// `tombolo mesh services`.
#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// A name, or namespace/name: its backends are listed too; without it all services
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) reading: Reading,
}

/// `tombolo mesh troubleshoot`.
#[derive(Debug, Args)]
pub(crate) struct TroubleshootArgs {
    /// One cluster; without it all of them
    pub(crate) cluster: Option<String>,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) reader: ReaderArgs,
}

/// `tombolo mesh dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// The agent's local API
    #[arg(long, env = "TOMBOLO_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    #[command(flatten)]
    pub(crate) reader: ReaderArgs,
    /// How long to wait until all clusters are read
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = mesh::duration, requires = "clustermesh_config")]
    pub(crate) wait: Duration,
}

/// Who reads the other clusters when there is no agent.
#[derive(Debug, Args)]
pub(crate) struct ReaderArgs {
    /// Read the clusters of this folder here and now, without an agent: one etcd client file for each, named after it
    #[arg(long, value_name = "DIR")]
    pub(crate) clustermesh_config: Option<PathBuf>,
    /// The number of the cluster that reads; one of another cluster that is the same is refused
    #[arg(long, value_name = "N", requires = "clustermesh_config")]
    pub(crate) cluster_id: Option<u32>,
    /// The name of the cluster that reads; a file of that name is passed over
    #[arg(long, value_name = "NAME", default_value = "tombolo-mesh", requires = "clustermesh_config")]
    pub(crate) cluster_name: ClusterName,
    /// The size of the mesh, which decides how identities are cut
    #[arg(long, value_name = "255|511", default_value = "255", value_parser = mesh::max_clusters, requires = "clustermesh_config")]
    pub(crate) max_connected_clusters: MaxClusters,
    /// Which form of backends is read of clusters that publish both (Cilium: clustermesh-service-v2)
    #[arg(long, value_name = "WORD", default_value = "prefer-legacy", value_parser = mesh::preference, requires = "clustermesh_config")]
    pub(crate) service_preference: ServicePreference,
    /// Accept `http://` endpoints: nobody is known then, and everybody on the way reads and forges
    #[arg(long, requires = "clustermesh_config")]
    pub(crate) allow_plaintext: bool,
}

/// `tombolo config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check an agent.yaml, router.yaml or relay.yaml, a manifest, a remote cluster's file or a topology file; all mistakes at once
    Check {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// An error that was already said in full.
pub(crate) fn fail(text: impl std::fmt::Display) -> ExitCode {
    eprintln!("tombolo: {text}");
    ExitCode::FAILURE
}
