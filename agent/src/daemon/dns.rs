//! The DNS unit as the agent sees it: started if it is not there, replaced if it works with other settings, and otherwise
//! left alone. It is no child of the agent's and lives on without it.

use super::drive::Driver;
use super::status::Part;
use crate::config::Config;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::watch;
use tombolo_dns::client::{self, ClientError};
use tombolo_dns::settings::{PORT, Settings};
use tombolo_topology::{AddressKind, NodeRow};

/// How often the unit is asked how it is.
const EVERY: Duration = Duration::from_secs(2);
/// How long a unit that was started may take to answer.
const START: Duration = Duration::from_secs(10);

/// The settings of a unit that the agent started, in the folder of its socket.
const SETTINGS: &str = "dns.json";

/// The socket of the unit beside the agent's.
pub(crate) fn control_socket(config: &Config) -> PathBuf {
    run_folder(config).join("dns.sock")
}

/// Where the unit's files lie that do not outlive the machine.
pub(crate) fn run_folder(config: &Config) -> &Path {
    config.api.socket.parent().unwrap_or_else(|| Path::new("/run/tombolo"))
}

/// The unit's settings; `node` gives the addresses to listen on where none are configured.
pub(crate) fn settings(config: &Config, node: Option<&NodeRow>) -> Settings {
    let dns = &config.dns;
    let own = node.into_iter().flat_map(|node| &node.addresses);
    let own = own.filter(|address| address.kind == AddressKind::Internal).map(|address| address.ip);
    let listen = match dns.listen.is_empty() {
        true => own.map(|ip: IpAddr| SocketAddr::from((ip, PORT))).collect(),
        false => dns.listen.clone(),
    };
    Settings {
        listen,
        cluster_domain: dns.cluster_domain.clone(),
        clusterset_domain: dns.clusterset_domain.clone(),
        upstreams: dns.upstreams.clone(),
        ttl_secs: dns.ttl_secs,
        agent_socket: config.api.socket.clone(),
        control_socket: control_socket(config),
        state_file: config.state_dir.0.join("dns").join("names.json"),
        metrics: dns.metrics,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Keeps the unit running until cancelled; tells `part` how it is.
pub(crate) async fn keep(driver: Driver, settings: Settings, run: PathBuf, part: watch::Sender<Part>) {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut children = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => {
                // The unit is not ended with the agent.
                children.detach_all();
                return;
            }
            Some(_) = children.join_next() => {}
            _ = interval.tick() => {}
        }
        let seen = match client::status(&settings.control_socket).await {
            Ok(status) if status.settings == settings => told(&status),
            Ok(status) => {
                tracing::info!(pid = status.pid, "the DNS unit works with other settings; it is replaced");
                match client::stop(&settings.control_socket).await {
                    Ok(()) => start(&settings, &run, &mut children).await,
                    Err(error) => failing(error.to_string()),
                }
            }
            Err(ClientError::Connect { .. }) => start(&settings, &run, &mut children).await,
            // One of an earlier version, whose settings cannot be read.
            Err(ClientError::Answer(_)) => match client::stop(&settings.control_socket).await {
                Ok(()) => start(&settings, &run, &mut children).await,
                Err(error) => failing(error.to_string()),
            },
            Err(error) => failing(error.to_string()),
        };
        part.send_replace(seen);
    }
}

/// Ends a unit that an earlier life of the agent started, which had `dns.enabled`; its settings lie in `run`. One that
/// somebody else runs has none there and is left alone.
pub(crate) async fn end(socket: PathBuf, run: PathBuf) {
    let file = run.join(SETTINGS);
    if !file.exists() {
        return;
    }
    match client::stop(&socket).await {
        Ok(()) => tracing::info!("the DNS unit was ended, for dns.enabled is not set any more"),
        // It ended by itself.
        Err(ClientError::Connect { .. }) => {}
        Err(error) => {
            tracing::warn!(%error, "the DNS unit goes on though dns.enabled is not set; end it, or restart the agent");
            return;
        }
    }
    if let Err(error) = std::fs::remove_file(&file) {
        tracing::warn!(path = %file.display(), %error, "cannot be removed; the next agent asks for the unit's end again");
    }
}

fn failing(detail: String) -> Part {
    Part::failing("dns", detail, "look at dns.log beside the agent's socket; tombolo dns status")
}

fn told(status: &tombolo_dns::Status) -> Part {
    let listen: Vec<String> = status.settings.listen.iter().map(ToString::to_string).collect();
    let detail = format!("{} names, {} imports, on {}", status.names, status.imports, listen.join(", "));
    if status.ready {
        Part::ready("dns", detail)
    } else {
        failing(format!("{detail}; not told all names yet"))
    }
}

/// Starts the unit and waits until it answers.
async fn start(settings: &Settings, run: &Path, children: &mut tokio::task::JoinSet<()>) -> Part {
    let started = match spawn(settings, run) {
        Ok(child) => child,
        Err(error) => return failing(format!("cannot be started: {error}")),
    };
    let mut child = started;
    let answers = async {
        loop {
            if let Ok(status) = client::status(&settings.control_socket).await {
                return told(&status);
            }
            // The unit opens its socket first; there is no event for that to be waited for.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let part = tokio::select! {
        part = answers => part,
        ended = child.wait() => failing(format!("it ended at once: {}", ended.map_or_else(|e| e.to_string(), |s| s.to_string()))),
        () = tokio::time::sleep(START) => failing("it was started and does not answer".to_owned()),
    };
    // Waited for, so that it leaves no zombie while this agent lives.
    children.spawn(async move {
        if let Ok(status) = child.wait().await {
            tracing::warn!(%status, "the DNS unit ended");
        }
    });
    part
}

fn spawn(settings: &Settings, run: &Path) -> std::io::Result<tokio::process::Child> {
    let file = run.join(SETTINGS);
    let private = |path: &Path, append: bool| {
        std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            .mode(0o600)
            .open(path)
    };
    private(&file, false)?.write_all(&serde_json::to_vec(settings)?)?;
    tokio::process::Command::new(std::env::current_exe()?)
        .args(["dns", "--settings"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(private(&run.join("dns.log"), true)?)
        // Signals for the agent's group are not for the unit.
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// The next one that asks, and what for; the answer is its last word.
    async fn asked(listener: UnixListener, socket: &Path) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let read = stream.read(&mut head).await.unwrap();
        drop(listener);
        std::fs::remove_file(socket).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&head[..read]).lines().next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_unit_of_an_agent_that_had_it_enabled_is_ended_once() {
        let run = tempfile::tempdir().unwrap();
        let (socket, file) = (run.path().join("dns.sock"), run.path().join(SETTINGS));
        let unit = UnixListener::bind(&socket).unwrap();
        // Somebody else's unit.
        end(socket.clone(), run.path().to_owned()).await;
        assert!(socket.exists());
        std::fs::write(&file, "{}").unwrap();
        let (line, ()) = tokio::join!(asked(unit, &socket), end(socket.clone(), run.path().to_owned()));
        assert_eq!((line.as_str(), file.exists()), ("GET /v1/stop HTTP/1.1", false));
        // One that has died left its settings only.
        std::fs::write(&file, "{}").unwrap();
        end(socket, run.path().to_owned()).await;
        assert!(!file.exists());
    }
}
