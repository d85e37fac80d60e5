//! The Multi-Cluster Services API, pure: exports of all clusters in; imports, their addresses and their derived services
//! out.
//!
//! An import is carried by a *derived service*, as in Cilium: a global service `derived-<hash>` of the same namespace,
//! with the clusterset IP as its cluster IP and the local endpoints of the exported service. Its backends travel between
//! clusters as those of any global service, and the service planner knows nothing of imports.

mod address;
mod plan;
mod resolve;
mod rows;
mod share;

pub use address::{ClusterSetRange, Round, assign};
pub use plan::{InputChanges, Inputs, Namespaces, Outputs, Planner, own_exports};
pub use resolve::{Conflict, Constituent, Reason, Resolved, resolve};
pub use rows::{
    Condition, ExportRow, ExportSpec, ExportStatus, ExportedPort, ImportRequest, ImportRow, ImportType,
    RemoteExport,
};

use crate::rows::ServiceName;
use sha2::{Digest, Sha256};

/// Letters and digits of base32 with the extended hexadecimal alphabet (RFC 4648, 7), in lower case.
const BASE32_HEX: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// How many of them name a derived service.
const DERIVED_CHARS: usize = 10;

/// Whether a name may be that of a derived service.
#[must_use]
pub fn is_derived(name: &ServiceName) -> bool {
    let hash = name.name.strip_prefix("derived-");
    hash.is_some_and(|hash| {
        hash.len() == DERIVED_CHARS && hash.bytes().all(|byte| BASE32_HEX.contains(&byte))
    })
}

/// The service that carries the import of `name`: the name that every implementation of the MCS API derives, so that
/// clusters find each other's backends under it.
#[must_use]
pub fn derived_name(name: &ServiceName) -> ServiceName {
    let hash = Sha256::digest(name.to_string().as_bytes());
    let bits = hash.iter().take(8).fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    let letter = |place: usize| {
        let five = usize::try_from((bits >> (59 - 5 * place)) & 31).unwrap_or_default();
        char::from(BASE32_HEX.get(five).copied().unwrap_or(b'0'))
    };
    let text: String = (0..DERIVED_CHARS).map(letter).collect();
    ServiceName { namespace: name.namespace.clone(), name: format!("derived-{text}").into() }
}

#[cfg(test)]
#[path = "mcs/tests.rs"]
mod tests;
