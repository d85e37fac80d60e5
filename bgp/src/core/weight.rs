//! Shares of the packets among equal paths, by their link bandwidths (draft-ietf-idr-link-bandwidth).

use crate::policy::ExtendedCommunity;
use crate::wire::Attributes;

/// The greatest weight: what the kernel takes for one next hop.
const WEIGHT_MAX: u16 = 256;

/// Weights of paths that are used together, in their order: proportional to their bandwidths, the greatest 256, none below 1. If a path has none,
/// or only one of zero, all weigh the same.
pub(super) fn weights<'a>(paths: impl ExactSizeIterator<Item = &'a Attributes>) -> Vec<u16> {
    let count = paths.len();
    let bandwidths: Vec<f32> = paths.map_while(bandwidth).filter(|bytes| *bytes > 0.0).collect();
    if count < 2 || bandwidths.len() < count {
        return vec![1; count];
    }
    let most = bandwidths.iter().copied().fold(0.0, f32::max);
    bandwidths.into_iter().map(|bytes| weight(bytes / most)).collect()
}

/// Bytes per second that a path came with.
fn bandwidth(attributes: &Attributes) -> Option<f32> {
    attributes
        .extended_communities
        .iter()
        .find_map(|community| ExtendedCommunity(*community).link_bandwidth())
}

/// The weight of a share from 0 to 1: the greatest number of steps that it reaches, found without a cast.
fn weight(share: f32) -> u16 {
    let (mut least, mut beyond) = (1, WEIGHT_MAX + 1);
    while least + 1 < beyond {
        let middle = u16::midpoint(least, beyond);
        // Half a step early: rounded, not cut.
        if (f32::from(middle) - 0.5) / f32::from(WEIGHT_MAX) <= share {
            least = middle;
        } else {
            beyond = middle;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(bandwidths: &[Option<&str>]) -> Vec<u16> {
        let attributes = |text: &Option<&str>| {
            let community = text.map(|text| text.parse::<ExtendedCommunity>().unwrap().0);
            Attributes { extended_communities: community.into_iter().collect(), ..Attributes::default() }
        };
        let all: Vec<Attributes> = bandwidths.iter().map(attributes).collect();
        weights(all.iter())
    }

    #[test]
    fn weights_follow_bandwidths() {
        let (gigabit, ten) = (Some("lb:65000:125000000"), Some("lb:65000:1250000000"));
        assert_eq!(weighed(&[gigabit, ten]), [26, 256]);
        assert_eq!(weighed(&[gigabit, gigabit]), [256, 256]);
        assert_eq!(weighed(&[gigabit, None]), [1, 1], "one without: all equal");
        assert_eq!(weighed(&[gigabit, Some("lb:65000:0")]), [1, 1]);
        assert_eq!(weighed(&[ten]), [1]);
        assert_eq!(weighed(&[Some("lb:1:1"), ten]), [1, 256]);
        assert_eq!(weighed(&[]), [0; 0]);
    }
}
