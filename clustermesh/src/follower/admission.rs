//! Whether a remote cluster may be followed: its configuration, checked, and its number, reserved.

use super::core::{Follower, Link};
use super::event::{Header, News, Output};
use crate::wire::{ClusterConfig, ConfigError, Layout, Remote, key};
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

impl Follower {
    pub(super) fn take_config(
        &mut self,
        now: Moment,
        header: Header,
        value: Option<Vec<u8>>,
        out: &mut Vec<Output>,
    ) {
        if !self.guard(now, header, out) {
            return;
        }
        match (self.link, value) {
            (Link::Configuring(since, _), None) => {
                self.link = Link::Configuring(since, Some(now.after(self.config.timers.config_retry)));
            }
            (Link::Configuring(..), Some(value)) => match self.accept_config(now, &value, out) {
                Ok(()) => {
                    self.conflicts.config_accepted();
                    self.read_on(out);
                }
                Err(error) => {
                    self.conflicts.config_refused(now, &error);
                    let name = key::cluster_config(self.config.cluster.as_str());
                    self.disconnect(now, &format!("{name}: {error}"), out);
                }
            },
            (Link::Running, Some(value)) => {
                let changed = match ClusterConfig::decode(&value) {
                    Ok(config) => self.published.as_ref() != Some(&config),
                    Err(_) => true,
                };
                if changed {
                    self.disconnect(now, "the cluster's configuration changed; reading it anew", out);
                } else {
                    self.judge_configured(now, true, out);
                }
            }
            (Link::Running, None) => self.judge_configured(now, false, out),
            _ => {}
        }
    }

    fn accept_config(&mut self, now: Moment, value: &[u8], out: &mut Vec<Output>) -> Result<(), ConfigError> {
        let published = ClusterConfig::decode(value)?;
        let id = published.check(self.config.own_id, self.config.max)?;
        // First: a cluster that takes a number which is not free keeps what is known of it.
        self.config
            .ids
            .reserve(&self.config.cluster, id)
            .map_err(|other| ConfigError::Taken { id: published.id, other: other.to_string() })?;
        if let Some(before) = self.remote.as_ref().map(|remote| remote.id).filter(|before| *before != id) {
            self.conflicts.id_changed(now, u32::from(before.get()), u32::from(id.get()));
            tracing::warn!(cluster = %self.config.cluster, %id, "the cluster has a new id: what was known under the old one is removed");
            self.drain_entries(out);
            self.bookmarks.forget();
            self.remote = None;
            self.set_state(SourceState::Pending, out);
        }
        self.remote = Some(Remote { name: self.config.cluster, id, max: self.config.max, own: false });
        self.choose_kinds(&published.capabilities, out);
        if self.config.mirror {
            out.push(Output::News(News::Config(id, value.into())));
        }
        if self.published.as_ref().is_some_and(|before| before.layout() != published.layout()) {
            self.bookmarks.forget();
        }
        self.published = Some(published);
        Ok(())
    }

    pub(super) fn layout(&self) -> Layout {
        self.published.as_ref().map_or(Layout::State, ClusterConfig::layout)
    }
}
