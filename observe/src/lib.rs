//! Flows with names, and metrics.
//!
//! [`flow::Enricher`] turns the datapath's plain [`tombolo_base::flow::FlowEvent`]s into [`flow::Flow`]s that say who
//! talked to whom; [`store::Store`] keeps the latest; [`filter::Filter`] picks; [`metrics::Metrics`] counts.
#![forbid(unsafe_code)]

pub mod filter;
pub mod flow;
pub mod metrics;
pub mod names;
pub mod relay;
pub mod store;
