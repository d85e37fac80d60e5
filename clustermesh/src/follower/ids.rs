//! Which remote cluster holds which number, over all remote clusters of this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tombolo_base::ids::{ClusterId, ClusterName};

/// The numbers in use; clones share them.
#[derive(Clone, Debug, Default)]
pub struct IdBook(Arc<Mutex<BTreeMap<ClusterId, ClusterName>>>);

impl IdBook {
    /// Gives `id` to `name`, and frees any other number it held.
    ///
    /// # Errors
    /// The name of the cluster that holds the number.
    pub fn reserve(&self, name: &ClusterName, id: ClusterId) -> Result<(), ClusterName> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match book.get(&id) {
            Some(holder) if holder != name => Err(*holder),
            Some(_) => Ok(()),
            None => {
                book.retain(|_, holder| holder != name);
                book.insert(id, *name);
                Ok(())
            }
        }
    }

    /// Frees the number of `name`.
    pub fn release(&self, name: &ClusterName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, holder| holder != name);
    }
}
