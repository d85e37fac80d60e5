//! What a peer of the mesh may do with another cluster's etcd: read what is shared, and nothing else.

use std::time::Duration;

use serde::Deserialize;

use super::access::{Output, Place};
use super::check::{CheckResult, Failure};
use super::context::Context;

/// How long one etcdctl may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What etcd says of a key that the role does not grant.
const DENIED: &str = "permission denied";

/// The certificate with which the nodes of one cluster read the other's etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdRoles {
    /// A node that holds it.
    pub node: String,
    /// The cluster whose etcd is asked.
    pub remote: String,
}

/// The part of Cilium's per-cluster file that the agents use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RemoteFile {
    endpoints: Vec<String>,
    trusted_ca_file: String,
    cert_file: String,
    key_file: String,
}

impl EtcdRoles {
    /// Runs the check.
    ///
    /// # Errors
    /// The first request that is answered otherwise than it must.
    pub async fn run(&self, context: &Context) -> CheckResult {
        let file = format!("/etc/tombolo/clustermesh/{}.yaml", self.remote);
        let text = context.access.text(&Place::node(&self.node), &["cat", &file]).await?;
        let remote: RemoteFile = serde_saphyr::from_str(&text).map_err(|error| {
            Failure::tool(&format!("reading {file} on {}", self.node), error, "the lab's clustermesh folder")
        })?;
        let own = format!("cilium/cluster-config/{}", self.remote);
        // The certificate works: what is refused below is refused by the role.
        for (key, prefix) in
            [(own.as_str(), false), ("cilium/state/nodes/v1/", true), ("cilium/.heartbeat", false)]
        {
            self.reads(context, &remote, key, prefix).await?;
        }
        for key in ["tombolo/", "cilium/", "cilium/cluster-config/", "/"] {
            self.refused(context, &remote, &["get", "--prefix", key]).await?;
        }
        // Keys that nobody uses, in every range that may be read and in some that may not.
        let synced = format!("cilium/synced/{}/lab-check", self.remote);
        let fresh = [
            "cilium/state/nodes/v1/lab-check",
            "cilium/state/ip/v1/default/192.0.2.1",
            "cilium/.heartbeat-lab-check",
            "cilium/cluster-config/lab-check",
            "tombolo/lab-check",
            "lab-check",
            &synced,
        ];
        for key in fresh {
            self.refused(context, &remote, &["put", key, "x"]).await?;
            self.refused(context, &remote, &["del", key]).await?;
        }
        // Keys in use: with what they hold already, so that even a role that grants it changes nothing.
        for key in [own.as_str(), "cilium/.heartbeat"] {
            self.refused(context, &remote, &["put", "--ignore-value", "--ignore-lease", key]).await?;
        }
        Ok(vec!["reads what is shared, nothing else; writes nothing".to_owned()])
    }

    fn argv<'a>(&self, remote: &'a RemoteFile, request: &[&'a str]) -> Vec<&'a str> {
        let endpoint = remote.endpoints.first().map_or("", String::as_str);
        let mut argv = vec!["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", endpoint];
        argv.extend([
            "--cacert",
            &remote.trusted_ca_file,
            "--cert",
            &remote.cert_file,
            "--key",
            &remote.key_file,
        ]);
        argv.extend(request);
        argv
    }

    async fn ask(
        &self,
        context: &Context,
        remote: &RemoteFile,
        request: &[&str],
    ) -> Result<(Output, String), Failure> {
        let place = Place::node(&self.node);
        let argv = self.argv(remote, request);
        Ok((context.access.exec(&place, &argv, TIMEOUT).await?, context.access.shown(&place, &argv)))
    }

    async fn reads(
        &self,
        context: &Context,
        remote: &RemoteFile,
        key: &str,
        prefix: bool,
    ) -> Result<(), Failure> {
        let mut request = vec!["get", "--keys-only", key];
        request.extend(prefix.then_some("--prefix"));
        let (output, look) = self.ask(context, remote, &request).await?;
        if output.status.success() && !output.stdout.trim_ascii().is_empty() {
            return Ok(());
        }
        let what = format!("{} may read {key} in the etcd of {}", self.node, self.remote);
        Err(Failure::new(what, format!("{}: {}", output.status, output.stderr.trim()), look))
    }

    async fn refused(&self, context: &Context, remote: &RemoteFile, request: &[&str]) -> Result<(), Failure> {
        let (output, look) = self.ask(context, remote, request).await?;
        if !output.status.success() && output.stderr.contains(DENIED) {
            return Ok(());
        }
        let what =
            format!("the etcd of {} refuses `{}` of {}: {DENIED}", self.remote, request.join(" "), self.node);
        let got = format!("{}: {}", output.status, output.stderr.trim());
        Err(Failure::new(what, got, format!("{look}; etcd/roles.sh")))
    }
}
