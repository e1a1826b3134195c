use std::{fmt, str::FromStr};

use souk_event_sourcing::UnixMillis;

/// A day in UTC, counted from 1970-01-01. Written `YYYY-MM-DD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i32);

/// Text that is no `YYYY-MM-DD` of a real day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a day: want YYYY-MM-DD")]
pub struct InvalidDay;

const DAY_MS: i64 = 86_400_000;

impl Day {
    /// The day of a moment.
    pub fn of(time: UnixMillis) -> Self {
        Self(time.0.div_euclid(DAY_MS) as i32)
    }

    /// The first moment of the day.
    pub fn start(self) -> UnixMillis {
        UnixMillis(i64::from(self.0) * DAY_MS)
    }

    /// This many days later, or earlier when negative.
    pub fn plus(self, days: i32) -> Self {
        Self(self.0.saturating_add(days))
    }
}

/// Civil date from days, after Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shifted = i64::from(self.0) + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// days_from_civil of the same source; accepts years 0001 to 9999.
impl FromStr for Day {
    type Err = InvalidDay;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = text.len() == 10
            && text.bytes().enumerate().all(|(index, byte)| match index {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        if !shape {
            return Err(InvalidDay);
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().map_err(|_| InvalidDay);
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        if year == 0 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return Err(InvalidDay);
        }
        let shifted_year = year - i64::from(month <= 2);
        let era = shifted_year.div_euclid(400);
        let year_of_era = shifted_year.rem_euclid(400);
        let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let parsed = Self((era * 146_097 + day_of_era - 719_468) as i32);
        // The 31st of a shorter month came out as another day.
        (parsed.to_string() == text).then_some(parsed).ok_or(InvalidDay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_round_trip_and_known_ones_are_right() {
        for (text, days) in [("1970-01-01", 0), ("1969-12-31", -1), ("2000-02-29", 11_016), ("2024-12-31", 20_088)] {
            assert_eq!(text.parse(), Ok(Day(days)));
            assert_eq!(Day(days).to_string(), text);
        }
        for days in -10_000..40_000 {
            assert_eq!(Day(days).to_string().parse(), Ok(Day(days)));
        }
    }

    #[test]
    fn no_other_text_is_a_day() {
        for text in [
            "",
            "2024-1-01",
            "2023-02-29",
            "2024-04-31",
            "2024-13-01",
            "2024-00-10",
            "0000-01-01",
            "2024/01/01",
            "+024-01-01",
            "2024-01-0é",
        ] {
            assert_eq!(text.parse::<Day>(), Err(InvalidDay), "{text}");
        }
    }

    #[test]
    fn a_moment_belongs_to_its_day_in_utc() {
        assert_eq!(Day::of(UnixMillis(0)), Day(0));
        assert_eq!(Day::of(UnixMillis(-1)), Day(-1));
        assert_eq!(Day::of(Day(20_088).start().plus_ms(DAY_MS - 1)), Day(20_088));
    }
}
