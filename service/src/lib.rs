//! Services, pure: frontends, backends, affinity between clusters, Maglev, in; load-balancing rows out.
#![forbid(unsafe_code)]

pub mod choice;
pub mod details;
pub mod maglev;
pub mod mcs;
mod members;
pub mod names;
pub mod numbers;
pub mod plan;
pub mod pools;
pub mod probe;
pub mod rows;
pub mod spread;
pub mod view;

pub use details::ServiceDetails;
pub use probe::FailedProbe;
pub use rows::{
    Affinity, BackendRow, BackendState, Claim, Distribution, FrontendKey, FrontendRow, HostPortRow,
    LbAssignment, Protocol, RemoteBackend, RemotePort, RemoteService, Scope, ServiceName, ServicePort,
    ServiceRow, ServiceType, SliceEndpoint, SlicePort, SliceRow, TrafficPolicy,
};
pub use spread::Spread;
