//! `load serve ADDRESS:PORT`, and `load rr|crr|stream|udp ADDRESS:PORT`: how many requests, connections or bytes there is room for.
//!
//! With `seconds=N` (1), `rate=N` (udp: so many per second, without waiting), `netns=NAME` (below /run/netns) and `cpu=N`. Prints
//! JSON; of a client the exit code says whether all was answered.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tombolo_tests::load::{Load, Server, enter, run, stay_on};

const USAGE: &str = "load serve|rr|crr|stream|udp ADDRESS:PORT [seconds=N] [rate=N] [netns=NAME] [cpu=N]";

fn command(arguments: &[String]) -> Result<bool, Box<dyn std::error::Error>> {
    let [word, target, options @ ..] = arguments else { return Err(USAGE.into()) };
    let target: SocketAddr = target.parse().map_err(|error| format!("{target:?}: {error}; {USAGE}"))?;
    let (mut seconds, mut rate) = (1.0, None);
    for option in options {
        match option.split_once('=') {
            Some(("seconds", value)) => seconds = value.parse()?,
            Some(("rate", value)) => rate = Some(value.parse()?),
            Some(("netns", value)) => enter(value)?,
            Some(("cpu", value)) => stay_on(value.parse()?)?,
            _ => return Err(format!("{option:?} is no option; {USAGE}").into()),
        }
    }
    if word == "serve" {
        Server::bind(target)?.start()?;
        println!("{target}");
        loop {
            std::thread::park();
        }
    }
    let done =
        run(&Load { kind: word.parse()?, target, duration: Duration::try_from_secs_f64(seconds)?, rate })?;
    println!("{}", serde_json::to_string(&done)?);
    Ok(done.failed == 0)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}
