//! The BGP speaker as a process of its own, for tests with real peers: it can be killed like an agent.
//!
//! Arguments are `key=value`: `asn`, `router-id`, `peer=NAME,ADDRESS,ASN,LOCAL` (repeated), `allow=PREFIX` (repeated), `announce=PREFIX`
//! (repeated), `restarting`, `passive`, `device=INTERFACE`, `bfd=DIRECTORY` (a BFD session with each peer, 100 ms x 3, its unit's files in that
//! directory), `bmp=ADDRESS:PORT`, `rpki=ADDRESS:PORT`, `log=FOLDER`, `peer-json={...}` and `range-json={...}` (settings that differ from the defaults, as JSON; repeated).
//! Called as `bgp_speaker bfd ...` it is that unit. Commands come on standard input: `announce PREFIX`, `withdraw PREFIX`, `complete`, `peers`, `caches`, `received`, `refresh NAME`, `dump FILE`,
//! `operate NAME {"action": ...}`, `update {...}` (as `peer-json`), `drain true|false`, `shutdown TEXT`. Events and answers go to standard output, one JSON object a line.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tombolo_bgp::bfd::{BfdSettings, client::Unit};
use tombolo_bgp::mrt::{MessageLog, table_dump};
use tombolo_bgp::rpki::RpkiCache;
use tombolo_bgp::{
    AllowedPrefix, Announcement, BfdUnit, BmpStation, Event, ListenRange, PeerConfig, RouteView, Scope,
    Speaker, SpeakerConfig, SpeakerHandle,
};

type Failure = Box<dyn std::error::Error>;

/// Desired and required interval of BFD sessions.
const BFD_INTERVAL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "bfd").is_some() {
        return tombolo_bgp::bfd::unit::run(arguments);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(speak())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bgp_speaker: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn speak() -> Result<(), Failure> {
    let mut config = SpeakerConfig::new(0, [0, 0, 0, 0].into());
    config.listen = vec!["0.0.0.0:179".parse()?, "[::]:179".parse()?];
    let (mut peers, mut allowed, mut announced, mut passive) = (Vec::new(), Vec::new(), Vec::new(), false);
    let (mut json_peers, mut ranges) = (Vec::new(), Vec::new());
    let mut bfd = None;
    for argument in std::env::args().skip(1) {
        let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
        match key {
            "asn" => config.local_asn = value.parse()?,
            "router-id" => config.router_id = value.parse()?,
            "peer" => peers.push(value.to_owned()),
            "peer-json" => json_peers.push(value.to_owned()),
            "range-json" => ranges.push(value.to_owned()),
            "allow" => allowed.push(AllowedPrefix::or_longer(value.parse()?)),
            "announce" => announced.push(value.to_owned()),
            "bmp" => config.stations.push(station(value)?),
            "rpki" => config.caches.push(RpkiCache { address: value.parse()? }),
            "log" => {
                let folder = value.into();
                config.message_log = Some(MessageLog { folder, file_bytes_max: 1 << 20, files: 2 });
            }
            "device" => config.device = Some(value.to_owned()),
            "restarting" => config.restarting = true,
            "passive" => passive = true,
            "bfd" => {
                let unit = Unit::of_this_program(Path::new(value));
                config.bfd = Some(BfdUnit { unit, owner: "speaker".into() });
                bfd = Some(BfdSettings {
                    min_tx: BFD_INTERVAL,
                    min_rx: BFD_INTERVAL,
                    ..BfdSettings::default()
                });
            }
            _ => return Err(format!("unknown argument {argument:?}").into()),
        }
    }
    let (speaker, mut events) = Speaker::start(config).await?;
    for peer in peers {
        let mut settings = peer_settings(&peer)?;
        settings.import = allowed.clone();
        settings.passive = passive;
        settings.bfd = bfd.clone();
        speaker.add_peer(settings).await?;
    }
    for peer in json_peers {
        speaker.add_peer(settings_of(&peer, &allowed)?).await?;
    }
    for range in ranges {
        speaker.add_range(range_of(&range, &allowed)?).await?;
    }
    for prefix in announced {
        speaker.announce(Scope::All, prefix.parse()?, Announcement::default()).await?;
    }
    println!("{}", json!({"event": "started"}));
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => println!("{}", event_json(&event)),
                None => return Ok(()),
            },
            line = commands.next_line() => match line? {
                Some(line) => {
                    if !command(&speaker, &line, &allowed).await? {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// A collector that is found soon.
fn station(address: &str) -> Result<BmpStation, Failure> {
    let second = Duration::from_secs(1);
    Ok(BmpStation {
        statistics_every: second,
        retry_first: second,
        retry_longest: second,
        adj_rib_out: true,
        system_name: "speaker".to_owned(),
        ..BmpStation::new(address.parse()?)
    })
}

/// Writes what was received to an MRT file.
async fn dump(speaker: &SpeakerHandle, path: &str) -> Result<(), Failure> {
    let (peers, rows) = (speaker.peers().await?, speaker.routes(RouteView::Received).await?);
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(std::fs::write(path, table_dump(at, [10, 77, 0, 1].into(), "speaker", &peers, &rows))?)
}

fn peer_settings(text: &str) -> Result<PeerConfig, Failure> {
    let [name, address, asn, local] = text.split(',').collect::<Vec<_>>()[..] else {
        return Err(format!("peer {text:?} is not NAME,ADDRESS,ASN,LOCAL").into());
    };
    let mut settings = quick(PeerConfig::new(name, address.parse()?, asn.parse()?));
    settings.local_address = Some(local.parse()?);
    settings.graceful_restart.enabled = true;
    settings.graceful_restart.restart_time_secs = 60;
    Ok(settings)
}

/// Settings as JSON: what is not given is as for a peer of `peer=`.
fn settings_of(text: &str, allowed: &[AllowedPrefix]) -> Result<PeerConfig, Failure> {
    let changes: Value = serde_json::from_str(text)?;
    let word = |key: &str| changes.get(key).and_then(Value::as_str).unwrap_or_default();
    let defaults = if changes.get("unnumbered") == Some(&Value::Bool(true)) {
        PeerConfig::unnumbered(word("name"), word("interface"), 0)
    } else {
        PeerConfig::new(word("name"), word("address").parse()?, 0)
    };
    let mut settings: PeerConfig = changed(&quick(defaults), changes)?;
    settings.import = allowed.to_vec();
    Ok(settings)
}

fn range_of(text: &str, allowed: &[AllowedPrefix]) -> Result<ListenRange, Failure> {
    let changes: Value = serde_json::from_str(text)?;
    let word = |key: &str| changes.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut range = ListenRange::new(word("name"), word("prefix").parse()?);
    range.template = quick(range.template);
    let mut range: ListenRange = changed(&range, changes)?;
    range.template.import = allowed.to_vec();
    Ok(range)
}

fn changed<T: serde::Serialize + serde::de::DeserializeOwned>(
    base: &T,
    changes: Value,
) -> Result<T, Failure> {
    let mut value = serde_json::to_value(base)?;
    merge(&mut value, changes);
    Ok(serde_json::from_value(value)?)
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (into, changes) => *into = changes,
    }
}

/// Timers short enough for a test.
const fn quick(mut settings: PeerConfig) -> PeerConfig {
    settings.timers.connect_retry = Duration::from_secs(2);
    settings.timers.hold = Duration::from_secs(9);
    settings.timers.keepalive = Duration::from_secs(3);
    settings
}

/// False when the speaker has been shut down.
async fn command(speaker: &SpeakerHandle, line: &str, allowed: &[AllowedPrefix]) -> Result<bool, Failure> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    match verb {
        "announce" => speaker.announce(Scope::All, rest.parse()?, Announcement::default()).await?,
        "withdraw" => speaker.withdraw(Scope::All, rest.parse()?).await?,
        "complete" => speaker.export_complete().await?,
        "dump" => {
            dump(speaker, rest).await?;
            println!("{}", json!({"dumped": rest}));
        }
        "operate" => {
            let (name, action) = rest.split_once(' ').unwrap_or((rest, "{}"));
            speaker.operate(name, serde_json::from_str(action)?).await?;
        }
        "refresh" => println!("{}", json!({"refreshed": speaker.refresh(rest).await?})),
        "peers" => println!("{}", json!({"peers": speaker.peers().await?})),
        "caches" => println!("{}", json!({"caches": speaker.rpki_caches()})),
        "received" => println!("{}", json!({"received": speaker.routes(RouteView::Received).await?})),
        "update" => {
            speaker.update_peer(settings_of(rest, allowed)?).await?;
            println!("{}", json!({"updated": true}));
        }
        "drain" => {
            speaker.drain(rest == "true").await?;
            println!("{}", json!({"draining": rest}));
        }
        "shutdown" => {
            speaker.shutdown(rest).await?;
            return Ok(false);
        }
        _ => return Err(format!("unknown command {line:?}").into()),
    }
    Ok(true)
}

fn event_json(event: &Event) -> serde_json::Value {
    match event {
        Event::Route { prefix, paths } => json!({"event": "route", "prefix": prefix, "paths": paths}),
        Event::PeerUp { peer } => json!({"event": "up", "peer": peer}),
        Event::PeerDown { peer, reason, routes_kept } => {
            json!({"event": "down", "peer": peer, "reason": reason, "kept": routes_kept})
        }
        Event::EndOfRib { peer, family } => json!({"event": "end-of-rib", "peer": peer, "family": family}),
    }
}
