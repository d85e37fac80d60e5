//! The agent's side of CNI: who owns an endpoint's life.
//!
//! The plain state (numbers, addresses, records) is behind a mutex that is never held across an await. Work on one
//! attachment (its interfaces, the gate) is done one operation after the other: [`Turns`].

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Writer;
use tombolo_netlink::{MacAddr, NetNs, Netlink};
use tombolo_topology::{EndpointRow, EndpointState};

use crate::gate::{DatapathGate, EndpointSpec, GateError, Identity};
use crate::interface::{PodInterface, host_name, is_host_name, macs};
use crate::ipam::{Claim, Ipam, IpamError};
use crate::protocol::{AddResult, Attachment, CniError, Code, Request};
use crate::record::{Directory, Record, Stage};
use crate::result;
use crate::turns::Turns;

/// Settings of the endpoint store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where `endpoints/` lies; survives the agent.
    pub state_dir: PathBuf,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<Prefix>,
    /// MTU of the pods' interfaces, in bytes: what the node's own link carries.
    pub pod_mtu: u32,
    /// What crosses the narrowest path to another node whole, in bytes: the MTU of the pods' default routes. Pods of the
    /// same node reach each other with `pod_mtu`.
    pub path_mtu: u32,
    /// How long identity and datapath may take for one ADD.
    pub apply_timeout: Duration,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be used.
    #[error("cannot use the endpoint state in {path}: {source}; check that the directory is writable")]
    State {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The pod CIDRs cannot be used.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The interfaces of the node cannot be read.
    #[error(transparent)]
    Netlink(#[from] tombolo_netlink::Error),
}

/// The endpoints of this node. Writes the endpoint table.
pub struct EndpointStore<G> {
    pub(crate) config: StoreConfig,
    pub(crate) gate: G,
    pub(crate) host: Netlink,
    directory: Directory,
    state: Mutex<State>,
    pub(crate) turns: Turns<Attachment>,
}

struct State {
    ipam: Ipam,
    last_id: u16,
    records: BTreeMap<u16, Record>,
    by_attachment: BTreeMap<Attachment, u16>,
    rows: Writer<EndpointRow>,
}

impl<G: DatapathGate> EndpointStore<G> {
    /// Opens the store and takes up the endpoints of the agent's earlier life: those whose interface is there stay
    /// as they are (ready at once, with the identity they had), half-made and half-deleted ones are taken away, and so are
    /// host interfaces of ours that no endpoint owns. Then the table's source `Local` is initialised.
    ///
    /// # Errors
    /// [`StoreError`] when the state directory, the pod CIDRs or the node's interfaces cannot be used.
    pub async fn open(
        config: StoreConfig,
        host: Netlink,
        gate: G,
        rows: Writer<EndpointRow>,
    ) -> Result<Arc<Self>, StoreError> {
        let state_error = |source| StoreError::State { path: config.state_dir.clone(), source };
        let directory = Directory::open(&config.state_dir).map_err(state_error)?;
        let memory = directory.load_memory();
        let ipam = Ipam::new(&config.pod_cidrs, &memory.pools)?;
        let restored = directory.load().map_err(state_error)?;
        let state = State {
            ipam,
            last_id: memory.last_id,
            records: BTreeMap::new(),
            by_attachment: BTreeMap::new(),
            rows,
        };
        let store = Self { config, gate, host, directory, state: Mutex::new(state), turns: Turns::default() };
        store.restore(restored).await?;
        Ok(Arc::new(store))
    }

    async fn restore(&self, restored: Vec<Record>) -> Result<(), StoreError> {
        let links = self.host.links().await?;
        let mut forgotten = Vec::new();
        for mut record in restored {
            let link = links.iter().find(|link| link.name == record.spec.host_interface);
            let Some(link) = link.filter(|_| record.stage == Stage::Ready) else {
                tracing::info!(endpoint = record.spec.id, pod = %record.spec.pod, stage = ?record.stage,
                    "an endpoint of an earlier life is taken away: half made, or its interface is gone");
                forgotten.push(record.spec);
                continue;
            };
            record.spec.ifindex = link.index;
            if !self.adopt(&record) {
                tracing::warn!(endpoint = record.spec.id, addresses = ?record.spec.addresses,
                    "an endpoint of an earlier life is taken away: another one has its address");
                self.forget_file(record.spec.id);
                continue;
            }
            // The runtime may have unmounted the namespace's path; then the host's side is all there is to mend.
            let netns = NetNs::open(&record.spec.netns).ok();
            if let Err(error) =
                self.pod_interface(&record.spec).refresh(&self.host, link, netns.as_ref()).await
            {
                tracing::warn!(endpoint = record.spec.id, %error, "an endpoint's interfaces could not be brought in line");
            }
        }
        self.forget(&forgotten);
        for link in links.iter().filter(|link| is_host_name(&link.name)) {
            if !self.state().records.values().any(|record| record.spec.host_interface == link.name) {
                tracing::info!(interface = %link.name, "an interface that no endpoint owns is deleted");
                self.host.delete_link(&link.name).await?;
            }
        }
        let state = self.state();
        let rows: Vec<EndpointRow> = state.records.values().map(row).collect();
        state.rows.replace_source(&Source::Local, rows);
        Ok(())
    }

    /// Takes a restored record into the state. False if somebody else has an address of it. One outside the node's pod
    /// CIDRs stays: the CIDRs were changed under a pod that runs; see [`EndpointStore::strays`].
    fn adopt(&self, record: &Record) -> bool {
        let mut state = self.state();
        let mut claimed = Vec::new();
        for address in &record.spec.addresses {
            match state.ipam.claim(*address) {
                Claim::Taken => claimed.push(*address),
                Claim::Foreign => tracing::warn!(endpoint = record.spec.id, pod = %record.spec.pod, %address,
                    "a pod's address is outside the node's pod CIDRs; the pod stays, delete it to give it another"),
                Claim::InUse => {
                    claimed.into_iter().for_each(|address| state.ipam.release(address));
                    return false;
                }
            }
        }
        state.by_attachment.insert(attachment(&record.spec), record.spec.id);
        state.records.insert(record.spec.id, record.clone());
        true
    }

    /// ADD: gives the pod its interface, addresses, routes, identity. Returns when the datapath forwards for it. On
    /// failure nothing is left. An attachment that is there already is completed and answered again.
    ///
    /// # Errors
    /// The CNI error for the runtime.
    pub async fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let attachment = request.attachment();
        let _turn = self.turns.enter(attachment.clone()).await;
        let netns = request.netns.as_deref().unwrap_or_default();
        let namespace = NetNs::open(netns).map_err(|error| {
            CniError::new(Code::UnknownContainer, "cannot open CNI_NETNS", error.to_string())
        })?;
        let known = self.spec(&attachment);
        if let Some(old) = known.filter(|old| old.netns != netns) {
            // The same sandbox id in another namespace: what we have is of a sandbox that is gone.
            self.take_away(&old).await?;
        }
        let spec = match self.spec(&attachment) {
            Some(spec) => spec,
            None => self.reserve(request, netns)?,
        };
        match self.bring_up(spec.clone(), &namespace).await {
            Ok(spec) => Ok(result::of(&self.pod_interface(&spec), netns, &request.configuration.cni_version)),
            Err(error) => {
                if let Err(left) = self.take_away(&spec).await {
                    tracing::warn!(endpoint = spec.id, error = %left, "a failed ADD could not be undone wholly; DEL will");
                }
                Err(error)
            }
        }
    }

    async fn bring_up(&self, mut spec: EndpointSpec, namespace: &NetNs) -> Result<EndpointSpec, CniError> {
        let interface = self.pod_interface(&spec);
        let failed = |error: tombolo_netlink::Error| {
            CniError::new(Code::Interface, "cannot set up the pod's interface", error.to_string())
        };
        spec.ifindex = interface.create(&self.host, namespace).await.map_err(failed)?.index;
        self.change(spec.id, |record| record.spec.ifindex = spec.ifindex)?;
        let wait = self.config.apply_timeout;
        let identity = within(wait, "allocate the identity", self.gate.identify(&spec)).await?;
        if self.gate.mac(&spec.namespace, &spec.pod).is_some_and(|asked| asked != spec.mac) {
            let details = "the pod's manifest became known after its interface was made; call again";
            return Err(CniError::new(
                Code::TryAgainLater,
                "cannot give the pod the Ethernet address it asks for",
                details,
            ));
        }
        self.change(spec.id, |record| {
            record.identity = Some(identity.id.0);
            record.labels = identity.labels.to_string();
        })?;
        within(wait, "apply the datapath", self.gate.apply(&spec)).await?;
        interface.activate(&self.host, namespace).await.map_err(failed)?;
        self.change(spec.id, |record| record.stage = Stage::Ready)?;
        tracing::info!(endpoint = spec.id, namespace = %spec.namespace, pod = %spec.pod,
            addresses = ?spec.addresses, identity = identity.id.0, "endpoint ready");
        Ok(spec)
    }

    /// DEL: takes the endpoint away. One that is not known, half made, or whose namespace is gone is fine.
    ///
    /// # Errors
    /// The CNI error for the runtime, which may call again.
    pub async fn del(&self, request: &Request) -> Result<(), CniError> {
        let attachment = request.attachment();
        let _turn = self.turns.enter(attachment.clone()).await;
        match self.spec(&attachment) {
            Some(spec) => self.take_away(&spec).await,
            // Nothing known; an interface of that name could still be left from a lost state directory.
            None => self.delete_interface(&host_name(&attachment.container_id, &attachment.ifname)).await,
        }
    }

    /// Datapath first, interface next, address last: nobody else gets the address while anything still points at it.
    async fn take_away(&self, spec: &EndpointSpec) -> Result<(), CniError> {
        self.change(spec.id, |record| record.stage = Stage::Deleting)?;
        within(self.config.apply_timeout, "remove the datapath", self.gate.remove(spec)).await?;
        self.delete_interface(&spec.host_interface).await?;
        self.release(spec)
    }

    async fn delete_interface(&self, name: &str) -> Result<(), CniError> {
        let deleted = self.host.delete_link(name).await;
        deleted.map(drop).map_err(|error| {
            CniError::new(Code::Interface, "cannot delete the pod's interface", error.to_string())
        })
    }

    /// CHECK: compares interfaces, addresses, routes and datapath with what they should be.
    ///
    /// # Errors
    /// The CNI error that names every difference.
    pub async fn check(&self, request: &Request) -> Result<(), CniError> {
        let attachment = request.attachment();
        let _turn = self.turns.enter(attachment.clone()).await;
        let record = self.record(&attachment).filter(|record| record.stage == Stage::Ready);
        let spec = record.map(|record| record.spec).ok_or_else(|| {
            let details = "there is no ready endpoint of that sandbox; call DEL and ADD";
            CniError::new(Code::UnknownContainer, format!("sandbox {}", attachment.container_id), details)
        })?;
        let unreadable = |error: tombolo_netlink::Error| {
            CniError::new(Code::Interface, "cannot check the pod", error.to_string())
        };
        let netns = NetNs::open(request.netns.as_deref().unwrap_or(&spec.netns)).map_err(unreadable)?;
        let mut differences =
            self.pod_interface(&spec).differences(&self.host, &netns).await.map_err(unreadable)?;
        differences
            .extend(result::missing_addresses(request.configuration.previous.as_ref(), &spec.addresses));
        if let Err(error) =
            within(self.config.apply_timeout, "check the datapath", self.gate.check(&spec)).await
        {
            differences.push(error.details);
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::Mismatch, "the pod is not as ADD left it", differences.join("; ")))
    }

    /// GC: deletes every endpoint that is not among the attachments the runtime still knows.
    ///
    /// # Errors
    /// The first CNI error met; the other endpoints are dealt with nevertheless.
    pub async fn gc(&self, request: &Request) -> Result<(), CniError> {
        let Some(valid) = &request.configuration.valid_attachments else {
            let details = "a GC call must carry cni.dev/valid-attachments".to_owned();
            return Err(CniError::new(Code::InvalidConfiguration, "cannot collect garbage", details));
        };
        let stale: Vec<Attachment> =
            self.state().by_attachment.keys().filter(|known| !valid.contains(known)).cloned().collect();
        let mut outcome = Ok(());
        for attachment in stale {
            let _turn = self.turns.enter(attachment.clone()).await;
            if let Some(spec) = self.spec(&attachment) {
                outcome = outcome.and(self.take_away(&spec).await);
            }
        }
        outcome
    }

    /// Writes another identity into an endpoint's row: its pod's labels have changed. False if there is no such endpoint.
    ///
    /// # Errors
    /// The state could not be kept on disk.
    pub fn relabel(&self, id: u16, identity: &Identity) -> Result<bool, CniError> {
        if !self.state().records.contains_key(&id) {
            return Ok(false);
        }
        self.change(id, |record| {
            record.identity = Some(identity.id.0);
            record.labels = identity.labels.to_string();
        })?;
        Ok(true)
    }

    /// The endpoints that are ready, by number.
    #[must_use]
    pub fn ready(&self) -> Vec<EndpointSpec> {
        let ready = |record: &&Record| record.stage == Stage::Ready;
        self.state().records.values().filter(ready).map(|record| record.spec.clone()).collect()
    }

    /// Endpoints that are not ready (being made or taken away), for `tombolo status`.
    #[must_use]
    pub fn unready(&self) -> Vec<EndpointSpec> {
        let unready = |record: &&Record| record.stage != Stage::Ready;
        self.state().records.values().filter(unready).map(|record| record.spec.clone()).collect()
    }

    /// Endpoints with an address outside the node's pod CIDRs, for `tombolo status`.
    #[must_use]
    pub fn strays(&self) -> Vec<EndpointSpec> {
        let state = self.state();
        let foreign = |address: &IpAddr| state.ipam.gateway_of(*address).is_none();
        let stray = |record: &&Record| record.spec.addresses.iter().any(foreign);
        state.records.values().filter(stray).map(|record| record.spec.clone()).collect()
    }

    /// Addresses (CIDR, in use, usable), for `tombolo status`.
    #[must_use]
    pub fn address_usage(&self) -> Vec<(Prefix, usize, u64)> {
        self.state().ipam.usage()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave half a change: every change below is one assignment or insertion.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, attachment: &Attachment) -> Option<Record> {
        let state = self.state();
        state.by_attachment.get(attachment).and_then(|id| state.records.get(id)).cloned()
    }

    fn spec(&self, attachment: &Attachment) -> Option<EndpointSpec> {
        self.record(attachment).map(|record| record.spec)
    }

    pub(crate) fn pod_interface(&self, spec: &EndpointSpec) -> PodInterface {
        let state = self.state();
        let gateway = |address: &IpAddr| state.ipam.gateway_of(*address).map(|gateway| (*address, gateway));
        PodInterface {
            host_name: spec.host_interface.clone(),
            pod_name: spec.ifname.clone(),
            host_mac: MacAddr(spec.host_mac),
            pod_mac: MacAddr(spec.mac),
            mtu: self.config.pod_mtu,
            route_mtu: Some(self.config.path_mtu).filter(|mtu| *mtu < self.config.pod_mtu),
            near: self.config.pod_cidrs.iter().map(Prefix::net).collect(),
            addresses: spec.addresses.iter().filter_map(gateway).collect(),
        }
    }

    /// Takes a number and addresses for a new endpoint and keeps them on disk before anything is made.
    fn reserve(&self, request: &Request, netns: &str) -> Result<EndpointSpec, CniError> {
        let mut state = self.state();
        let id = state.free_id().ok_or_else(|| {
            let details = "all 65535 numbers are in use; delete pods".to_owned();
            CniError::new(Code::NoAddress, "cannot number the endpoint", details)
        })?;
        let addresses = state.ipam.allocate().map_err(|error| {
            CniError::new(Code::NoAddress, "cannot give the pod an address", error.to_string())
        })?;
        let (pod_mac, host_mac) = macs(&request.container_id, &request.ifname);
        let argument = |name: &str| request.args.get(name).cloned();
        let named = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
        let asked = named.and_then(|(namespace, pod)| self.gate.mac(&namespace, &pod));
        let spec = EndpointSpec {
            id,
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns: netns.to_owned(),
            namespace: argument("K8S_POD_NAMESPACE").unwrap_or_default(),
            pod: argument("K8S_POD_NAME").unwrap_or_default(),
            pod_uid: argument("K8S_POD_UID"),
            addresses,
            host_interface: host_name(&request.container_id, &request.ifname),
            ifindex: 0,
            mac: asked.unwrap_or_else(|| pod_mac.octets()),
            host_mac: host_mac.octets(),
        };
        let record = Record::new(spec.clone());
        let kept =
            self.directory.store_memory(id, state.ipam.memory()).and_then(|()| self.directory.store(&record));
        if let Err(error) = kept {
            spec.addresses.iter().for_each(|address| state.ipam.release(*address));
            return Err(self.unwritable(&error));
        }
        state.last_id = id;
        state.by_attachment.insert(request.attachment(), id);
        state.rows.upsert(row(&record));
        state.records.insert(id, record);
        Ok(spec)
    }

    /// Changes a record, on disk first, then in memory and in the table. One that is gone is left alone.
    fn change(&self, id: u16, edit: impl FnOnce(&mut Record)) -> Result<(), CniError> {
        let mut state = self.state();
        let Some(mut record) = state.records.get(&id).cloned() else { return Ok(()) };
        edit(&mut record);
        self.directory.store(&record).map_err(|error| self.unwritable(&error))?;
        state.rows.upsert(row(&record));
        state.records.insert(id, record);
        Ok(())
    }

    /// Gives number and addresses back.
    fn release(&self, spec: &EndpointSpec) -> Result<(), CniError> {
        let mut state = self.state();
        self.directory.remove(spec.id).map_err(|error| self.unwritable(&error))?;
        if state.records.remove(&spec.id).is_some() {
            spec.addresses.iter().for_each(|address| state.ipam.release(*address));
        }
        state.by_attachment.remove(&attachment(spec));
        state.rows.remove(&spec.id);
        // Losing this only means that a fresh address might come back early after a restart.
        if let Err(error) = self.directory.store_memory(state.last_id, state.ipam.memory()) {
            tracing::warn!(%error, "the address pools' memory could not be kept");
        }
        Ok(())
    }

    /// Removes what is left of endpoints of an earlier life. Their addresses are the last to be handed out again.
    fn forget(&self, specs: &[EndpointSpec]) {
        let mut state = self.state();
        for spec in specs {
            spec.addresses.iter().for_each(|address| state.ipam.quarantine(*address));
        }
        let kept = self.directory.store_memory(state.last_id, state.ipam.memory());
        drop(state);
        if let Err(error) = kept {
            tracing::warn!(%error, "the address pools' memory could not be kept");
        }
        specs.iter().for_each(|spec| self.forget_file(spec.id));
    }

    fn forget_file(&self, id: u16) {
        if let Err(error) = self.directory.remove(id) {
            tracing::warn!(endpoint = id, %error, "an endpoint's state file could not be removed");
        }
    }

    fn unwritable(&self, error: &io::Error) -> CniError {
        let details = format!("{error}; check the space and rights of {}", self.directory.path().display());
        CniError::new(Code::State, "cannot keep the endpoint's state", details)
    }
}

impl State {
    /// The number after the last one that is free, so that numbers come back as late as they can.
    fn free_id(&self) -> Option<u16> {
        let after = (self.last_id.checked_add(1).unwrap_or(1))..=u16::MAX;
        after.chain(1..=self.last_id).find(|id| *id != 0 && !self.records.contains_key(id))
    }
}

fn attachment(spec: &EndpointSpec) -> Attachment {
    Attachment { container_id: spec.container_id.clone(), ifname: spec.ifname.clone() }
}

/// The table's row of a record.
fn row(record: &Record) -> EndpointRow {
    let spec = &record.spec;
    EndpointRow {
        id: spec.id,
        namespace: spec.namespace.as_str().into(),
        pod: spec.pod.as_str().into(),
        container_id: spec.container_id.as_str().into(),
        addresses: spec.addresses.clone(),
        host_interface: spec.host_interface.as_str().into(),
        ifindex: spec.ifindex,
        mac: spec.mac,
        host_mac: spec.host_mac,
        identity: record.identity.map(IdentityId),
        // Written by this program from labels it had: what cannot be read is treated as none.
        labels: Labels::parse(&record.labels).unwrap_or_default(),
        state: match record.stage {
            Stage::Creating => EndpointState::Creating,
            Stage::Ready => EndpointState::Ready,
            Stage::Deleting => EndpointState::Deleting,
        },
    }
}

/// Bounds one call of the gate and turns its failure into a CNI error.
async fn within<T>(
    wait: Duration,
    what: &str,
    call: impl Future<Output = Result<T, GateError>>,
) -> Result<T, CniError> {
    let msg = format!("cannot {what}");
    match tokio::time::timeout(wait, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.retry => Err(CniError::new(Code::TryAgainLater, msg, error.message)),
        Ok(Err(error)) => Err(CniError::new(Code::Datapath, msg, error.message)),
        Err(_) => {
            let details = format!("it is not done after {} s; see `tombolo status`", wait.as_secs());
            Err(CniError::new(Code::TryAgainLater, msg, details))
        }
    }
}
