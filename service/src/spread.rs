//! How a service's traffic is spread over clusters: ordered tiers, weights, overflow, probes, as annotations say it.
//!
//! What a text does not name is not used; `*` names all the rest.

use crate::rows::{Affinity, ServiceRow};
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use tombolo_base::ids::ClusterName;

/// Longest text of one annotation.
const MAX_TEXT: usize = 32 * 1024;
/// Largest weight of a cluster.
const MAX_WEIGHT: u16 = 10_000;
/// Most tiers of a service.
const MAX_TIERS: usize = 64;

/// A cluster, or several, by a word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `local`: this cluster.
    Local,
    /// A cluster by name; this one's name means the same as `local`.
    Cluster(ClusterName),
    /// `*`: all that are not named elsewhere in the text.
    Rest,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Cluster(name) => f.write_str(name.as_str()),
            Self::Rest => f.write_str("*"),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "local" => Ok(Self::Local),
            "*" => Ok(Self::Rest),
            name => ClusterName::new(name).map(Self::Cluster).map_err(|error| error.to_string()),
        }
    }
}

/// How a service's backends are probed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Probe {
    /// The path that must answer 200 to 399 by HTTP/1.1; `None`: a TCP connection is enough.
    pub path: Option<String>,
    /// The shortest time between two probes of one backend.
    pub period: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What the annotations `service.tombolo.io/…` of a service say; empty without them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Clusters in the order they are used; empty: as the affinity says.
    pub tiers: Vec<BTreeSet<Place>>,
    /// Shares of clusters within a tier; empty: all backends alike.
    pub weights: BTreeMap<Place, u16>,
    /// A tier whose share of usable backends is below this percentage is helped by the next one; `None`: the next one is
    /// used when the tier has none at all.
    pub overflow: Option<u8>,
    /// Whether and how backends of other clusters are probed.
    pub probe: Option<Probe>,
}

impl Spread {
    /// Reads `east,west;north`: tiers apart by `;`, clusters by `,`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_tiers(text: &str) -> Result<Vec<BTreeSet<Place>>, String> {
        let (mut tiers, mut seen) = (Vec::new(), BTreeSet::new());
        for tier in bounded(text)?.split(';') {
            let mut places = BTreeSet::new();
            for word in tier.split(',').map(str::trim) {
                let place = Place::parse(word)?;
                if !seen.insert(place.clone()) {
                    return Err(format!("{place} stands twice"));
                }
                places.insert(place);
            }
            tiers.push(places);
        }
        if tiers.len() > MAX_TIERS {
            return Err(format!("{} tiers; at most {MAX_TIERS} are used", tiers.len()));
        }
        Ok(tiers)
    }

    /// Reads `east=80,west=20`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_weights(text: &str) -> Result<BTreeMap<Place, u16>, String> {
        let mut weights = BTreeMap::new();
        for word in bounded(text)?.split(',').map(str::trim) {
            let (name, number) = word.split_once('=').ok_or_else(|| format!("{word:?} is no name=weight"))?;
            let place = Place::parse(name.trim())?;
            let weight = number.trim().parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
            let weight =
                weight.ok_or_else(|| format!("the weight of {place} is no number from 0 to {MAX_WEIGHT}"))?;
            if weights.insert(place.clone(), weight).is_some() {
                return Err(format!("{place} stands twice"));
            }
        }
        if weights.values().all(|weight| *weight == 0) {
            return Err("all weights are 0".to_owned());
        }
        Ok(weights)
    }

    /// Reads `50%`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_overflow(text: &str) -> Result<u8, String> {
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
        number
            .filter(|percent| (1..=100).contains(percent))
            .ok_or_else(|| "it is no percentage from 1% to 100%".to_owned())
    }

    /// Reads `tcp`, `http:/healthz`, each also with `period=10s` and `timeout=2s` behind it, apart by blanks.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_probe(text: &str) -> Result<Probe, String> {
        let mut words = bounded(text)?.split_whitespace();
        let path = match words.next().unwrap_or("") {
            "tcp" => None,
            word => match word.strip_prefix("http:") {
                Some(path) if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) => {
                    Some(path.to_owned())
                }
                _ => return Err("it begins neither with tcp nor with http:/path".to_owned()),
            },
        };
        let (mut period, mut timeout) = (Duration::from_secs(10), Duration::from_secs(2));
        for word in words {
            let seconds = |text: &str| {
                let number = text.strip_suffix('s').and_then(|number| number.parse::<u64>().ok());
                let number = number.filter(|number| (1..=3600).contains(number)).map(Duration::from_secs);
                number.ok_or_else(|| format!("{word:?} is no time from 1s to 3600s"))
            };
            match word.split_once('=') {
                Some(("period", text)) => period = seconds(text)?,
                Some(("timeout", text)) => timeout = seconds(text)?,
                _ => return Err(format!("{word:?} is neither period= nor timeout=")),
            }
        }
        if timeout > period {
            return Err("the timeout is longer than the period".to_owned());
        }
        Ok(Probe { path, period, timeout })
    }

    /// The tiers as they are written.
    #[must_use]
    pub fn tiers_text(&self) -> String {
        tiers_text(&self.tiers)
    }

    /// The weights as they are written.
    #[must_use]
    pub fn weights_text(&self) -> String {
        let one = |(place, weight): (&Place, &u16)| format!("{place}={weight}");
        let all: Vec<String> = self.weights.iter().map(one).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(",") }
    }
}

fn bounded(text: &str) -> Result<&str, String> {
    if text.len() > MAX_TEXT { Err(format!("it is longer than {MAX_TEXT} bytes")) } else { Ok(text) }
}

fn tiers_text(tiers: &[BTreeSet<Place>]) -> String {
    let tier =
        |places: &BTreeSet<Place>| places.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let all: Vec<String> = tiers.iter().map(tier).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(";") }
}

/// The tiers in force: those of the annotation, or the affinity's.
#[must_use]
pub fn tiers(service: &ServiceRow) -> Vec<BTreeSet<Place>> {
    if !service.spread.tiers.is_empty() {
        return service.spread.tiers.clone();
    }
    let one = |place| BTreeSet::from([place]);
    match service.affinity {
        Affinity::None => vec![one(Place::Rest)],
        Affinity::Local => vec![one(Place::Local), one(Place::Rest)],
        Affinity::Remote => vec![one(Place::Rest), one(Place::Local)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_or_told() {
        let tiers = |text| Spread::parse_tiers(text).map(|tiers| tiers_text(&tiers));
        for text in ["east,west;north", "local;*", "*", "a;b;c;*"] {
            assert_eq!(tiers(text), Ok(text.to_owned()));
        }
        assert_eq!(tiers(" west , east ;*").unwrap(), "east,west;*");
        for bad in ["", ";", "east;", "east,east", "east;east", "*;*", "East", "default", "a b"] {
            assert!(tiers(bad).is_err(), "{bad:?}");
        }
        let many =
            vec!["x"; 100].iter().enumerate().map(|(n, x)| format!("{x}{n}")).collect::<Vec<_>>().join(";");
        assert!(tiers(&many).unwrap_err().contains("64"));
        let weights =
            |text| Spread::parse_weights(text).map(|weights| weights.into_iter().collect::<Vec<_>>());
        assert_eq!(weights("east=80, *=20").unwrap().len(), 2);
        assert_eq!(weights("local=0,west=1").unwrap()[0], (Place::Local, 0));
        for bad in [
            "",
            "east",
            "east=",
            "east=-1",
            "east=10001",
            "east=1,east=2",
            "east=0,west=0",
            "=3",
            "east=99999999999",
        ] {
            assert!(weights(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Spread::parse_overflow("50%"), Ok(50));
        for bad in ["", "50", "0%", "101%", "-1%", "%", "1.5%", "300%"] {
            assert!(Spread::parse_overflow(bad).is_err(), "{bad:?}");
        }
        let probe = Spread::parse_probe("http:/healthz?x=1 period=30s timeout=5s").unwrap();
        assert_eq!(
            (probe.path.as_deref(), probe.period.as_secs(), probe.timeout.as_secs()),
            (Some("/healthz?x=1"), 30, 5)
        );
        assert_eq!(Spread::parse_probe("tcp").unwrap().path, None);
        for bad in [
            "",
            "udp",
            "http:",
            "http:healthz",
            "tcp period=0s",
            "tcp timeout=20s",
            "tcp every=1s",
            "http:/a\r\nX:y",
        ] {
            assert!(Spread::parse_probe(bad).is_err(), "{bad:?}");
        }
    }
}
