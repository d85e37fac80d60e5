//! What the workspace's tests share: namespaces, daemons, waiting. Tests live in `tests/`; the ones here need root and fail without it.

#![forbid(unsafe_code)]

pub mod load;
pub mod matrix;
pub mod netns;
pub mod report;
pub mod routers;
pub mod speaker;
pub mod usage;
