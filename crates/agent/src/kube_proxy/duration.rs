//! Times as Go writes them: `1h30m`, `250ms`, `0s`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const UNITS: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A length of time in the notation of Go's `time.Duration`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no length of time; write it like 30s, 1m30s or 250ms");
        if text.starts_with('-') {
            return Err(format!("{text:?} is negative"));
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let unit = UNITS.iter().find(|(name, _)| *name == &tail[..end]).ok_or_else(wrong)?.1;
            total = nanoseconds(number, unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
            rest = &tail[end..];
        }
        u64::try_from(total).map(|nanos| Self(Duration::from_nanos(nanos))).map_err(|_| wrong())
    }
}

/// `number` times `unit`; a fraction below a nanosecond is cut off.
fn nanoseconds(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    let fraction = fraction.get(..fraction.len().min(18))?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    parse(whole)?.checked_mul(unit)?.checked_add(parse(fraction)?.checked_mul(unit)? / scale)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let small = [("ms", 1_000_000), ("µs", 1_000), ("ns", 1)];
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        if let Some((name, unit)) = small.iter().find(|(_, unit)| nanos < 1_000_000_000 && nanos >= *unit) {
            return write!(f, "{}{name}", decimal(nanos, *unit));
        }
        let (minutes, rest) = (self.0.as_secs() / 60, nanos % 60_000_000_000);
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        write!(f, "{}s", decimal(rest, 1_000_000_000))
    }
}

fn decimal(nanos: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let text = format!("{}.{:0width$}", nanos / unit, nanos % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_notation_is_read_and_written() {
        let cases = [
            ("0s", 0),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            ("15m0s", 900_000_000_000),
            ("24h0m0s", 86_400_000_000_000),
            ("1h1m1.001s", 3_661_001_000_000),
            ("2µs", 2_000),
            ("7ns", 7),
        ];
        for (text, nanos) in cases {
            let duration: GoDuration = text.parse().unwrap();
            assert_eq!((duration.0.as_nanos(), duration.to_string()), (nanos, text.to_owned()));
        }
        assert_eq!("2h22m".parse::<GoDuration>().unwrap().to_string(), "2h22m0s");
        assert_eq!("0".parse(), Ok(GoDuration::default()));
        for wrong in ["", "1", "s", "1x", "1m30", ".s", "99999999999h", "1.2.3s"] {
            assert!(wrong.parse::<GoDuration>().is_err(), "{wrong:?}");
        }
        assert_eq!("-1s".parse::<GoDuration>().unwrap_err(), "\"-1s\" is negative");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in any::<u64>()) {
            let duration = GoDuration(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,30}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
