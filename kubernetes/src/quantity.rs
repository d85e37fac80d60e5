//! Quantities as Kubernetes writes them: `10M`, `1.5Gi`, `2e6`.

/// More digits say nothing that a number of 64 bits could keep.
const MAX_DIGITS: usize = 27;

/// The whole units of a quantity, rounded up as Kubernetes does. `None`: no quantity, negative, or more than fits.
pub(crate) fn units(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{part}");
    if digits.len() > MAX_DIGITS {
        return None;
    }
    let mantissa: u128 = digits.parse().ok()?;
    let (binary, decimal) = scale(suffix)?;
    let exponent = decimal.checked_sub(i32::try_from(part.len()).ok()?)?;
    let value = mantissa.checked_mul(1_u128 << binary)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent < 0, power) {
        (false, power) => value.checked_mul(power?)?,
        (true, Some(power)) => value.div_ceil(power),
        (true, None) => u128::from(value > 0),
    };
    u64::try_from(value).ok()
}

/// A suffix as (power of two, power of ten).
fn scale(suffix: &str) -> Option<(u32, i32)> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
    if let Some((_, power)) = DECIMAL.into_iter().find(|(name, _)| *name == suffix) {
        return Some((0, power));
    }
    if let Some((_, power)) = BINARY.into_iter().find(|(name, _)| *name == suffix) {
        return Some((power, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((0, exponent))
}

#[cfg(test)]
mod tests {
    use super::units;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, wanted) in [
            ("10M", 10_000_000),
            ("1.5Gi", 1_610_612_736),
            ("2e6", 2_000_000),
            ("2E6", 2_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("100", 100),
            ("+1k", 1000),
            (".5M", 500_000),
            ("5.", 5),
            ("1500m", 2),
            ("1e-40", 1),
            ("0", 0),
        ] {
            assert_eq!(units(text), Some(wanted), "{text}");
        }
        for text in ["", ".", "M", "-1M", "1.2.3", "10MB", "10 M", "1KiB", "1e", "1e999", "99E", "1k1", "é"]
        {
            assert_eq!(units(text), None, "{text}");
        }
        assert_eq!(units(&"9".repeat(28)), None);
    }
}
