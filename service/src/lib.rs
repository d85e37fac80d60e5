//! Services, pure: frontends, backends, affinity between clusters, Maglev, in; load-balancing rows out.
#![forbid(unsafe_code)]

pub mod details;
pub mod maglev;
pub mod mcs;
pub mod names;
pub mod numbers;
pub mod plan;
pub mod pools;
pub mod rows;

pub use details::ServiceDetails;
pub use rows::{
    Affinity, BackendRow, FrontendKey, FrontendRow, LbAssignment, Protocol, RemotePort, RemoteService, Scope,
    ServiceName, ServicePort, ServiceRow, ServiceType, SliceEndpoint, SlicePort, SliceRow, TrafficPolicy,
};
