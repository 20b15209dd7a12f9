//! Moments, as the domain sees them: UTC milliseconds handed in from outside, RFC 3339 in text. Never read from a clock here.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

pub const SECOND_MS: i64 = 1_000;
pub const MINUTE_MS: i64 = 60 * SECOND_MS;

/// 9999-12-31T23:59:59.999Z, the last moment that RFC 3339 can write.
const LAST_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// Held within the years 1970 to 9999, so that every moment can be written as RFC 3339.
    pub fn from_millis(millis: i64) -> Self {
        Timestamp(millis.clamp(0, LAST_MS))
    }

    pub fn as_millis(self) -> i64 {
        self.0
    }

    pub fn plus_ms(self, millis: i64) -> Self {
        Timestamp::from_millis(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this moment; negative when it lies after.
    pub fn since_ms(self, earlier: Timestamp) -> i64 {
        self.0 - earlier.0
    }

    /// The day in UTC, as `2026-11-21`.
    pub fn date(self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }

    /// Reads RFC 3339 text of any offset; digits past the millisecond are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        Text::read(text).or_else(|| Timestamp::millis(text).filter(|millis| (0..=LAST_MS).contains(millis)).map(Timestamp))
    }

    /// The same, where a moment before the first or after the last that there is stands for that.
    pub fn nearest(text: &str) -> Option<Self> {
        Timestamp::millis(text).map(Timestamp::from_millis)
    }

    fn millis(text: &str) -> Option<i64> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
    }
}

/// Days since 1970-01-01 to a civil date (Howard Hinnant's algorithm), for the years 1970 to 9999.
fn civil(days: u32) -> (u32, u32, u32) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u32::from(month <= 2);
    (year, month, day)
}

/// A moment's text: `0000-00-00T00:00:00.000Z`.
struct Text([u8; 24]);

impl Text {
    /// By hand, there and back: each record bears at least one.
    fn of(moment: Timestamp) -> Self {
        let millis = moment.0 as u64;
        let (days, rest) = ((millis / 86_400_000) as u32, (millis % 86_400_000) as u32);
        let (year, month, day) = civil(days);
        let (second, milli) = (rest / 1_000, rest % 1_000);
        let two = |number: u32| [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
        let ([c, d], [y, z], [a, b], [e, f]) = (two(year / 100), two(year % 100), two(month), two(day));
        let ([g, h], [i, j], [k, l]) = (two(second / 3_600), two(second / 60 % 60), two(second % 60));
        let ([_, m], [n, o]) = (two(milli / 100), two(milli % 100));
        Text([c, d, y, z, b'-', a, b, b'-', e, f, b'T', g, h, b':', i, j, b':', k, l, b'.', m, n, o, b'Z'])
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The moment, if this is how it is written here.
    fn read(text: &str) -> Option<Timestamp> {
        let bytes: &[u8; 24] = text.as_bytes().try_into().ok()?;
        let number = |from: usize, digits: usize| {
            let digits = bytes.iter().skip(from).take(digits);
            digits.fold(0_i64, |number, digit| number * 10 + i64::from(digit.wrapping_sub(b'0')))
        };
        let days = days(number(0, 4), number(5, 2), number(8, 2));
        let seconds = number(11, 2) * 3_600 + number(14, 2) * 60 + number(17, 2);
        let moment = Timestamp(days * 86_400_000 + seconds * SECOND_MS + number(20, 3));
        // Whatever is no such text is not written like it.
        ((0..=LAST_MS).contains(&moment.0) && Text::of(moment).0 == *bytes).then_some(moment)
    }
}

/// The inverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Text::of(*self).as_str())
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "A moment in UTC (RFC 3339)." })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Text::of(*self).as_str())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rfc;
        impl de::Visitor<'_> for Rfc {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time in RFC 3339")
            }
            fn visit_str<Error: de::Error>(self, text: &str) -> Result<Timestamp, Error> {
                Timestamp::parse(text).ok_or_else(|| Error::custom("not a time in RFC 3339 between 1970 and 9999"))
            }
        }
        deserializer.deserialize_str(Rfc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_219_199_999, "2026-11-20T23:59:59.999Z"),
            (LAST_MS, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn offsets_are_understood_and_nonsense_is_not() {
        assert_eq!(Timestamp::parse("2026-11-21T01:00:00.5+01:00"), Timestamp::parse("2026-11-21T00:00:00.500Z"));
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "1960-01-01T00:00:00Z", "2026-11-21"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
        for (text, nearest) in [
            ("1960-01-01T00:00:00Z", Some(0)),
            ("0000-01-01T00:00:00+23:59", Some(0)),
            ("9999-12-31T23:59:59.999-23:59", Some(LAST_MS)),
            ("1970-01-01T00:00:01Z", Some(1_000)),
            ("yesterday", None),
        ] {
            assert_eq!(Timestamp::nearest(text).map(Timestamp::as_millis), nearest, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(millis in 0..=LAST_MS) {
            let moment = Timestamp::from_millis(millis);
            prop_assert_eq!(Timestamp::parse(&moment.to_string()), Some(moment));
        }

        #[test]
        fn what_is_written_like_it_is_read_as_the_standard_says(millis in 0..=LAST_MS, place in 0..24_usize, byte in 32..127_u8) {
            let mut text = Timestamp::from_millis(millis).to_string().into_bytes();
            text[place] = byte;
            let text = String::from_utf8(text).unwrap();
            let standard = OffsetDateTime::parse(&text, &Rfc3339).ok().map(|moment| moment.unix_timestamp_nanos().div_euclid(1_000_000));
            prop_assert_eq!(Timestamp::parse(&text).map(|moment| i128::from(moment.0)), standard.filter(|ms| *ms >= 0));
        }
    }
}
