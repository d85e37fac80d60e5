//! Two ways side by side: in turn, only while nobody else wants the processors, and with an interval around what comes out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tombolo_tests::load::{self, Done, Kind, Load};
use tombolo_tests::netns::Namespace;
use tombolo_tests::report::{Figure, Goal, Report, median};
use tombolo_tests::usage::Usage;

use crate::Failure;

/// A round begins while tasks waited for a processor during less than so much of the last 10 s, in percent...
const QUIET: f64 = 5.0;
/// ...and counts if that has not risen beyond this: our own two ends need one each.
const DISTURBED: f64 = 10.0;
/// Resamplings of the rounds.
const RESAMPLINGS: usize = 2_000;
/// Half the width of the interval, in proportion, beyond which nothing is claimed.
const WIDEST: f64 = 0.1;
/// The processors of client and server.
const CLIENT: usize = 0;
const SERVER: usize = 1;

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) rounds: usize,
    pub(crate) each: Duration,
    /// How long to wait for quiet, all rows together; `None`: not at all.
    pub(crate) patience: Option<Duration>,
}

/// One of the two.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    /// Where the client is.
    pub(crate) client: &'a Namespace,
    pub(crate) target: SocketAddr,
}

/// What a round gave.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Requests a second, or Mbit a second.
    rate: f64,
    /// Microseconds of processor time, of both ends and all between, for a request or a Mbit.
    cpu_us: f64,
}

/// Lets a server answer in a namespace, on its processor.
pub(crate) fn serve(space: &Namespace, at: SocketAddr) -> Result<(), Failure> {
    let name = space.name().to_owned();
    let starting = std::thread::spawn(move || {
        load::enter(&name)?;
        load::stay_on(SERVER)?;
        load::Server::bind(at)?.start()
    });
    Ok(starting.join().map_err(|_| "the server's thread panicked")??)
}

/// Carries a load out from a namespace, on the client's processor.
pub(crate) fn carry_out(client: &Namespace, load: Load) -> Result<Done, Failure> {
    let name = client.name().to_owned();
    let running = std::thread::spawn(move || {
        load::enter(&name)?;
        load::stay_on(CLIENT)?;
        load::run(&load)
    });
    Ok(running.join().map_err(|_| "the client's thread panicked")??)
}

/// How much of the last 10 s tasks waited for a processor, in percent.
fn pressure() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/pressure/cpu")
        .map_err(|error| format!("/proc/pressure/cpu: {error}; the kernel needs CONFIG_PSI"))?;
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="));
    let value = some.and_then(|rest| rest.split_whitespace().next());
    Ok(value.ok_or_else(|| format!("no \"some avg10\" in {text:?}"))?.parse()?)
}

fn measure(side: Side<'_>, kind: Kind, duration: Duration) -> Result<Measured, Failure> {
    let before = Usage::of(std::process::id()).cpu;
    let done = carry_out(side.client, Load { kind, target: side.target, duration, rate: None })?;
    let cpu = Usage::of(std::process::id()).cpu.saturating_sub(before);
    if done.failed > 0 {
        return Err(format!(
            "{kind:?} to {}: {} failed, the last: {:?}",
            side.target, done.failed, done.failure
        )
        .into());
    }
    let rate = if kind == Kind::Stream { done.mbit_per_second } else { done.per_second };
    Ok(Measured { rate, cpu_us: cpu.as_secs_f64() * 1e6 / (rate * done.seconds) })
}

/// Median of the values, and the middle 95 % of the medians of resamplings.
fn interval(values: &[f64]) -> Option<(f64, [f64; 2])> {
    let middle = median(values.to_vec())?;
    // A fixed seed: equal rounds give an equal interval.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % values.len() as u64).unwrap_or_default()
    };
    let mut medians: Vec<f64> = (0..RESAMPLINGS)
        .filter_map(|_| median((0..values.len()).filter_map(|_| values.get(draw()).copied()).collect()))
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |permille: usize| medians.get(medians.len() * permille / 1000).copied();
    Some((middle, [at(25)?, at(975)?]))
}

/// What a row is called, and what it is to come to.
pub(crate) struct Wanted<'a> {
    pub(crate) id: &'a str,
    pub(crate) what: &'a str,
    pub(crate) kind: Kind,
    pub(crate) peer: &'a str,
    pub(crate) goal: Goal,
}

/// Compares pairs of ways and adds a row for each.
pub(crate) struct Comparison<'a> {
    report: &'a mut Report,
    method: Method,
    /// What is left of the patience.
    left: Option<Duration>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(report: &'a mut Report, method: Method) -> Self {
        Self { report, method, left: method.patience }
    }

    /// Waits for quiet; false if there is none.
    fn quiet(&mut self) -> Result<bool, Failure> {
        let Some(left) = self.left else { return Ok(true) };
        let begun = Instant::now();
        let outcome = loop {
            if pressure()? < QUIET {
                break true;
            }
            if begun.elapsed() >= left {
                break false;
            }
            // The kernel makes a new average every two seconds, and tells nobody.
            std::thread::sleep(Duration::from_secs(1));
        };
        self.left = Some(left.saturating_sub(begun.elapsed()));
        Ok(outcome)
    }

    /// Measures ours and theirs in turn; `between` is run before each round.
    pub(crate) fn row(
        &mut self,
        wanted: &Wanted<'_>,
        [ours, theirs]: [Side<'_>; 2],
        mut between: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (mut rounds, mut disturbed): (Vec<[Measured; 2]>, usize) = (Vec::new(), 0);
        while rounds.len() < self.method.rounds && disturbed <= self.method.rounds && self.quiet()? {
            between()?;
            let swapped = (rounds.len() + disturbed) % 2 == 1;
            let each = self.method.each;
            let measured = if swapped {
                let second = measure(theirs, wanted.kind, each)?;
                [measure(ours, wanted.kind, each)?, second]
            } else {
                [measure(ours, wanted.kind, each)?, measure(theirs, wanted.kind, each)?]
            };
            if self.method.patience.is_some() && pressure()? >= DISTURBED {
                disturbed += 1;
            } else {
                rounds.push(measured);
            }
        }
        self.add(wanted, &rounds, disturbed);
        Ok(())
    }

    fn add(&mut self, wanted: &Wanted<'_>, rounds: &[[Measured; 2]], disturbed: usize) {
        let each = |of: fn(&[Measured; 2]) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
        let ours = median(each(|[ours, _]| ours.rate));
        let theirs = median(each(|[_, theirs]| theirs.rate));
        let cpu = [each(|[ours, _]| ours.cpu_us), each(|[_, theirs]| theirs.cpu_us)].map(median);
        let complete = rounds.len() >= self.method.rounds;
        let ratios = interval(&each(|[ours, theirs]| ours.rate / theirs.rate));
        let narrow = ratios.is_some_and(|(middle, [low, high])| (high - low) / 2.0 <= WIDEST * middle);
        let (unit, of) = if wanted.kind == Kind::Stream { ("Mbit/s", "Mbit") } else { ("/s", "request") };
        let note = match (ratios, cpu) {
            (Some((_, [low, high])), [Some(ours), Some(theirs)]) => format!(
                "ratio {low:.3} to {high:.3} in 95 % of resamplings of {} rounds ({disturbed} disturbed); processor time \
                 {ours:.1} and {theirs:.1} us a {of}",
                rounds.len()
            ),
            _ => "not measured: the processors were never quiet (/proc/pressure/cpu)".to_owned(),
        };
        let Wanted { id, what, peer, goal, .. } = *wanted;
        let figure = Figure { id, what, unit, ours, peer: Some((theirs, peer)), goal };
        self.report.add_judged(&figure, ratios.map(|(middle, _)| middle), complete && narrow, &note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_as_wide_as_the_rounds_differ() {
        let (middle, [low, high]) = interval(&[1.0; 15]).expect("rounds");
        assert_eq!((middle, low, high), (1.0, 1.0, 1.0));
        let spread: Vec<f64> = (0..15).map(|round| 1.0 + f64::from(round) / 10.0).collect();
        let (middle, [low, high]) = interval(&spread).expect("rounds");
        assert!(
            low < middle && middle < high && (high - low) / 2.0 > WIDEST * middle,
            "{low} {middle} {high}"
        );
        assert!(interval(&[]).is_none());
    }
}
