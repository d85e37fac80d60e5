//! A small router without a kernel: passes on between its peers what they send.
//!
//! ```text
//! router ASN ROUTER-ID PEER=ASN[:in|:out] ...
//! ```
//! Listens on port 179 and waits for the peers. `in` takes routes only, `out` gives routes only. `make bench-bgp` runs it beside other speakers.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use tombolo_bgp::{AllowedPrefix, Error, Event, Family, PeerConfig, Speaker, SpeakerConfig};

const USAGE: &str = "usage: router ASN ROUTER-ID PEER=ASN[:in|:out] ...";

struct Arguments {
    asn: u32,
    router_id: Ipv4Addr,
    peers: Vec<PeerConfig>,
}

fn arguments() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let (asn, router_id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let peers = words.map(|word| peer(&word)).collect::<Option<Vec<PeerConfig>>>()?;
    Some(Arguments { asn, router_id, peers })
}

fn peer(word: &str) -> Option<PeerConfig> {
    let (address, rest) = word.split_once('=')?;
    let (asn, direction) = rest.split_once(':').unwrap_or((rest, ""));
    let address: IpAddr = address.parse().ok()?;
    let mut config = PeerConfig::new(&address.to_string(), address, asn.parse().ok()?);
    config.families = Family::ALL.to_vec();
    config.passive = true;
    config.max_prefixes = usize::MAX;
    config.export_learned = direction != "in";
    if direction != "out" {
        let all = ["0.0.0.0/0", "::/0"].into_iter().filter_map(|text| text.parse().ok());
        config.import = all.map(AllowedPrefix::or_longer).collect();
    }
    Some(config)
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let mut config = SpeakerConfig::new(arguments.asn, arguments.router_id);
    config.listen = vec![([0, 0, 0, 0], 179).into()];
    config.event_queue = 0;
    let (speaker, mut events) = Speaker::start(config).await?;
    for peer in arguments.peers {
        speaker.add_peer(peer).await?;
    }
    while let Some(event) = events.next().await {
        match event {
            Event::PeerUp { peer } => println!("{peer} is up"),
            Event::PeerDown { peer, reason, .. } => println!("{peer} is down: {reason}"),
            Event::EndOfRib { .. } | Event::Route { .. } => {}
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
