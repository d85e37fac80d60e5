//! Times as text (RFC 3339), for heartbeats, canaries and exports.

use std::time::{SystemTime, UNIX_EPOCH};

/// `0001-01-01T00:00:00Z`, which Go takes for "no time".
pub(crate) const ZERO_UNIX_SECS: i64 = -62_135_596_800;

const DAY_SECS: i64 = 86_400;
/// The first and the last second that four digits of a year can say.
const FIRST_UNIX_SECS: i64 = days(0, 1, 1) * DAY_SECS;
const LAST_UNIX_SECS: i64 = days(10_000, 1, 1) * DAY_SECS - 1;

/// Now in UTC, to the second.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    text(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A time in UTC. Years are written from 0000 to 9999; what lies outside is written as the nearest such second.
pub(crate) fn text(unix_secs: i64) -> String {
    let unix_secs = unix_secs.clamp(FIRST_UNIX_SECS, LAST_UNIX_SECS);
    let (day, rest) = (unix_secs.div_euclid(DAY_SECS), unix_secs.rem_euclid(DAY_SECS));
    // Within eras of 400 years, and years that begin in March: the leap day is the last one of a year.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970 of a time in any offset; fractions of seconds are cut off. `None` when it is no such text.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.split_at_checked(10)?;
    let [year, month, day] = fields(date, b'-', [4, 2, 2])?;
    let (time, zone) = time.strip_prefix('T')?.split_at_checked(8)?;
    let [hour, minute, second] = fields(time, b':', [2, 2, 2])?;
    let fraction = zone.strip_prefix(['.', ',']).unwrap_or(zone);
    let after = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
    if (fraction.len() == zone.len()) != (after.len() == fraction.len()) {
        return None;
    }
    let offset = match after.split_at_checked(1)? {
        ("Z", "") => 0,
        ("+", offset) => clock(offset)?,
        ("-", offset) => -clock(offset)?,
        _ => return None,
    };
    let sound = (1..=12).contains(&month) && day >= 1 && hour < 24 && minute < 60 && second < 60;
    // The day after is the first one of the next month at the latest.
    let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let date = days(year, month, day);
    let unix_secs = date * DAY_SECS + hour * 3600 + minute * 60 + second - offset;
    let sound = sound && date < days(next_year, next_month, 1);
    (sound && (FIRST_UNIX_SECS..=LAST_UNIX_SECS).contains(&unix_secs)).then_some(unix_secs)
}

/// `hh:mm` in seconds.
fn clock(text: &str) -> Option<i64> {
    let [hour, minute] = fields(text, b':', [2, 2])?;
    (hour < 24 && minute < 60).then_some(hour * 3600 + minute * 60)
}

/// Numbers of these many digits, with the separator between them.
fn fields<const N: usize>(text: &str, separator: u8, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(char::from(separator));
    let mut numbers = [0; N];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        for (unix_secs, known) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_323_045, "2026-01-02T03:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (ZERO_UNIX_SECS, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(text(unix_secs), known);
            assert_eq!(parse(known), Some(unix_secs));
        }
        assert_eq!(
            (text(i64::MAX), text(i64::MIN)),
            ("9999-12-31T23:59:59Z".into(), "0000-01-01T00:00:00Z".into())
        );
    }

    #[test]
    fn offsets_and_fractions() {
        for same in ["2026-01-02T05:34:05+02:30", "2026-01-01T22:04:05-05:00", "2026-01-02T03:04:05.999Z"] {
            assert_eq!(parse(same), Some(1_767_323_045), "{same}");
        }
    }

    #[test]
    fn what_is_no_time() {
        for bad in [
            "",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-13-02T03:04:05Z",
            "2026-02-29T03:04:05Z",
            "2026-01-00T03:04:05Z",
            "2026-01-02T24:00:00Z",
            "2026-01-02T03:60:00Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05+2:00",
            "2026-01-02T03:04:05Zx",
            "2026-01-02T03:04:05123Z",
            "+026-01-02T03:04:05Z",
            "2026-01-02t03:04:05z",
            "26-01-02T03:04:05Z",
            "2026-01-02T03:04:05+24:00",
            "0000-01-01T00:00:00+00:01",
            "\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_as_written(unix_secs in FIRST_UNIX_SECS..=LAST_UNIX_SECS) {
            prop_assert_eq!(parse(&text(unix_secs)), Some(unix_secs));
        }

        #[test]
        fn no_text_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(secs) = parse(&String::from_utf8_lossy(&bytes)) {
                prop_assert_eq!(parse(&text(secs)), Some(secs));
            }
        }
    }
}
