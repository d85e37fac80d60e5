//! Calls CNI plugins as a container runtime does: the chain of a `.conflist`, each plugin given the result of the
//! one before, the last result cached for DEL (CNI specification 1.0, sections 3 and 4).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::command::basic_env;
use crate::init::root::CNI_PATH;
use crate::process::Reaper;

/// Where network configurations are.
const CONFIG_FOLDER: &str = "/etc/cni/net.d";
/// Where results are kept; it survives the init, so that what an earlier life attached can be detached.
const CACHE_FOLDER: &str = "/var/lib/cni/results";
/// How long one call of a plugin may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The interface in a pod.
pub(super) const INTERFACE: &str = "eth0";

/// Why a plugin did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniError {
    /// No usable configuration.
    #[error("no CNI configuration in {CONFIG_FOLDER}: {0}; bind a .conflist there")]
    Configuration(String),
    /// The plugin is not there or cannot be run.
    #[error("CNI plugin {plugin}: {reason}; CNI_PATH is {CNI_PATH}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// The plugin said no.
    #[error("CNI {command} by {plugin}: {message} (code {code}){details}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its type.
        plugin: String,
        /// CNI's error code; 11 means: try again later.
        code: u64,
        /// The plugin's words.
        message: String,
        /// More of them.
        details: String,
    },
}

/// A pod's attachment to the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attachment {
    /// The sandbox's id.
    pub(super) container_id: String,
    /// The pod's network namespace.
    pub(super) netns: PathBuf,
    /// The pod's namespace.
    pub(super) namespace: String,
    /// The pod's name.
    pub(super) name: String,
    /// The pod's UID.
    pub(super) uid: String,
    /// The last result of ADD.
    pub(super) result: Option<Value>,
}

/// A chain of plugins.
#[derive(Debug)]
struct Chain {
    name: String,
    version: String,
    /// `disableCheck`: the list's author knows that CHECK cannot succeed.
    disable_check: bool,
    plugins: Vec<Value>,
}

/// Attaches a pod; answers its addresses.
pub(super) async fn add(reaper: &Reaper, attachment: &mut Attachment) -> Result<Vec<IpAddr>, CniError> {
    let chain = load()?;
    let mut result = None;
    for plugin in &chain.plugins {
        let output = call(reaper, "ADD", &chain, plugin, attachment, result.as_ref()).await?;
        result = Some(parse(&output, plugin)?);
    }
    attachment.result = result;
    remember(attachment);
    Ok(addresses(attachment.result.as_ref()))
}

/// Asks whether a pod is attached as ADD has left it.
pub(super) async fn check(reaper: &Reaper, attachment: &Attachment) -> Result<(), CniError> {
    let chain = load()?;
    if chain.disable_check {
        return Ok(());
    }
    for plugin in &chain.plugins {
        call(reaper, "CHECK", &chain, plugin, attachment, attachment.result.as_ref()).await?;
    }
    Ok(())
}

/// Detaches a pod, in the reverse order of the chain; works for a half attached one too.
pub(super) async fn del(reaper: &Reaper, attachment: &Attachment) -> Result<(), CniError> {
    let chain = load()?;
    let cached = recall(&attachment.container_id);
    let result = attachment.result.as_ref().or(cached.as_ref());
    for plugin in chain.plugins.iter().rev() {
        call(reaper, "DEL", &chain, plugin, attachment, result).await?;
    }
    if let Err(error) = std::fs::remove_file(cache_file(&attachment.container_id)) {
        // It is there only after a whole ADD.
        tracing::debug!(%error, "no cached result removed");
    }
    Ok(())
}

/// The cached result of an attachment.
fn recall(container_id: &str) -> Option<Value> {
    let text = std::fs::read(cache_file(container_id)).ok()?;
    serde_json::from_slice::<Attachment>(&text).ok()?.result
}

/// Everything that was attached and not detached, in this life of the node or an earlier one.
pub(super) fn attached() -> Vec<Attachment> {
    let entries = std::fs::read_dir(CACHE_FOLDER).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read(entry.path()).ok());
    texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
}

fn cache_file(container_id: &str) -> PathBuf {
    Path::new(CACHE_FOLDER).join(format!("{container_id}-{INTERFACE}.json"))
}

fn remember(attachment: &Attachment) {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(CACHE_FOLDER)?;
        std::fs::write(cache_file(&attachment.container_id), serde_json::to_vec(attachment)?)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, pod = %attachment.name, "the CNI result cannot be cached");
    }
}

/// The first configuration of the folder, by name, as libcni takes it.
fn load() -> Result<Chain, CniError> {
    let wrong = |error: &dyn std::fmt::Display| CniError::Configuration(error.to_string());
    let entries = std::fs::read_dir(CONFIG_FOLDER).map_err(|error| wrong(&error))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "conflist"));
    files.sort();
    let file = files.first().ok_or_else(|| wrong(&"no file ends in .conflist"))?;
    let text = std::fs::read(file).map_err(|error| wrong(&format!("{}: {error}", file.display())))?;
    let list: Value =
        serde_json::from_slice(&text).map_err(|error| wrong(&format!("{}: {error}", file.display())))?;
    let word = |key: &str| list.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let plugins = list.get("plugins").and_then(Value::as_array).cloned().unwrap_or_default();
    if plugins.is_empty() || word("name").is_empty() || word("cniVersion").is_empty() {
        return Err(wrong(&format!("{}: needs cniVersion, name and plugins", file.display())));
    }
    let disable_check = list.get("disableCheck").and_then(Value::as_bool).unwrap_or_default();
    Ok(Chain { name: word("name"), version: word("cniVersion"), disable_check, plugins })
}

/// The configuration one plugin gets: its own, with the list's name and version and the result before it.
fn plugin_config(chain: &Chain, plugin: &Value, previous: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    if let Some(object) = config.as_object_mut() {
        object.insert("name".to_owned(), json!(chain.name));
        object.insert("cniVersion".to_owned(), json!(chain.version));
        if let Some(previous) = previous {
            object.insert("prevResult".to_owned(), previous.clone());
        }
        // Capabilities ask for runtimeConfig, of which this runtime has none to give.
        object.remove("capabilities");
    }
    config
}

async fn call(
    reaper: &Reaper,
    command: &'static str,
    chain: &Chain,
    plugin: &Value,
    attachment: &Attachment,
    previous: Option<&Value>,
) -> Result<Vec<u8>, CniError> {
    let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let failed = |reason: String| CniError::Plugin { plugin: kind.clone(), reason };
    let program = find(&kind).ok_or_else(|| failed("not found".to_owned()))?;
    let netns = attachment.netns.to_string_lossy().into_owned();
    let env = BTreeMap::from([
        ("CNI_COMMAND".to_owned(), command.to_owned()),
        ("CNI_CONTAINERID".to_owned(), attachment.container_id.clone()),
        // An empty one tells DEL that the namespace is gone.
        ("CNI_NETNS".to_owned(), if attachment.netns.exists() { netns } else { String::new() }),
        ("CNI_IFNAME".to_owned(), INTERFACE.to_owned()),
        ("CNI_PATH".to_owned(), CNI_PATH.to_owned()),
        ("CNI_ARGS".to_owned(), arguments(attachment)),
    ]);
    let mut process = Command::new(program);
    basic_env(&mut process, &env);
    let input = plugin_config(chain, plugin, previous).to_string();
    let output = tokio::time::timeout(PATIENCE, reaper.output(&mut process, input.as_bytes()))
        .await
        .map_err(|_| failed(format!("{command} not done within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if output.exit.success() {
        return Ok(output.stdout);
    }
    Err(refusal(command, kind, &output))
}

fn refusal(command: &'static str, plugin: String, output: &crate::process::Output) -> CniError {
    let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let word = |key: &str| said.as_ref().and_then(|said| said.get(key)).and_then(Value::as_str);
    match said.as_ref().and_then(|said| said.get("code")).and_then(Value::as_u64) {
        Some(code) => CniError::Refused {
            command,
            plugin,
            code,
            message: word("msg").unwrap_or_default().to_owned(),
            details: word("details").map(|details| format!(": {details}")).unwrap_or_default(),
        },
        None => {
            let text = String::from_utf8_lossy(&output.stderr);
            let reason =
                format!("{command}: {}, without an error in CNI's form: {}", output.exit, text.trim());
            CniError::Plugin { plugin, reason }
        }
    }
}

fn parse(output: &[u8], plugin: &Value) -> Result<Value, CniError> {
    serde_json::from_slice(output).map_err(|error| CniError::Plugin {
        plugin: plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        reason: format!("answered no result: {error}"),
    })
}

/// CNI_ARGS as Kubernetes' runtimes give it.
fn arguments(attachment: &Attachment) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.namespace, attachment.name, attachment.container_id, attachment.uid
    )
}

fn find(kind: &str) -> Option<PathBuf> {
    if kind.is_empty() || kind.contains('/') {
        return None;
    }
    CNI_PATH.split(':').map(|folder| Path::new(folder).join(kind)).find(|path| path.exists())
}

/// The addresses of a result.
fn addresses(result: Option<&Value>) -> Vec<IpAddr> {
    let entries = result.and_then(|result| result.get("ips")).and_then(Value::as_array);
    let texts =
        entries.into_iter().flatten().filter_map(|entry| entry.get("address").and_then(Value::as_str));
    texts.filter_map(|text| text.split('/').next().and_then(|address| address.parse().ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_result_before_it() {
        let chain = Chain {
            name: "tombolo".to_owned(),
            version: "1.0.0".to_owned(),
            disable_check: false,
            plugins: Vec::new(),
        };
        let plugin = json!({"type": "tuning", "sysctl": {"a": "b"}, "capabilities": {"mac": true}});
        let config = plugin_config(&chain, &plugin, Some(&json!({"ips": []})));
        assert_eq!(
            config,
            json!({"type": "tuning", "sysctl": {"a": "b"}, "name": "tombolo", "cniVersion": "1.0.0",
                   "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn addresses_of_a_result() {
        let result =
            json!({"ips": [{"address": "10.1.1.2/32"}, {"address": "fd00::2/128"}, {"address": "x"}]});
        let expected: Vec<IpAddr> = vec!["10.1.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(Some(&result)), expected);
        assert!(addresses(None).is_empty());
    }

    #[test]
    fn a_refusal_is_understood() {
        let output = crate::process::Output {
            exit: crate::process::Exit::Code(1),
            stdout: br#"{"cniVersion":"1.0.0","code":11,"msg":"the agent is not up","details":"no socket"}"#
                .to_vec(),
            stderr: Vec::new(),
        };
        let error = refusal("ADD", "tombolo-cni".to_owned(), &output);
        assert!(matches!(&error, CniError::Refused { code: 11, .. }), "{error}");
        assert_eq!(error.to_string(), "CNI ADD by tombolo-cni: the agent is not up (code 11): no socket");
    }
}
