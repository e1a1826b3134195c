//! Text for people: colours where there is a terminal, numbers one can read.

use std::{
    fmt::Display,
    io::{ErrorKind, IsTerminal, Write, stdout},
    sync::LazyLock,
    time::{Duration, SystemTime},
};

static COLOURED: LazyLock<bool> = LazyLock::new(|| stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());

/// A line on stdout. When nobody reads it any more, as behind `head`, the program ends without a word.
pub fn say(line: impl Display) {
    match writeln!(stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // A full disk or the like: the next line will show it, if anything can.
        _ => {}
    }
}

fn paint(code: &str, text: impl Display) -> String {
    if *COLOURED { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

pub fn bold(text: impl Display) -> String {
    paint("1", text)
}

pub fn dim(text: impl Display) -> String {
    paint("2", text)
}

pub fn green(text: impl Display) -> String {
    paint("32", text)
}

pub fn yellow(text: impl Display) -> String {
    paint("33", text)
}

pub fn red(text: impl Display) -> String {
    paint("31", text)
}

/// 1234567 as 1,234,567.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// 72.4 s as 1m12s; short ones with a decimal.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Milliseconds from `from` to `to`; negative when two clocks disagree.
pub fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(later) => later.as_secs_f64() * 1e3,
        Err(earlier) => -earlier.duration().as_secs_f64() * 1e3,
    }
}

/// The time of day in UTC, to the millisecond.
pub fn clock(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "–".to_owned(), |time| time.strftime("%H:%M:%S%.3f").to_string())
}

/// EUR 12.34. Currencies are shown with two decimals, as nearly all have.
pub fn money(money: Option<&souk_proto::common::v1::Money>) -> String {
    money.map_or_else(
        || "–".to_owned(),
        |money| {
            let sign = if money.minor_units < 0 { "-" } else { "" };
            let units = money.minor_units.unsigned_abs();
            format!("{} {sign}{}.{:02}", money.currency, thousands(units / 100), units % 100)
        },
    )
}

#[cfg(test)]
mod tests {
    use souk_proto::common::v1::Money;

    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1.25, 72.0, 3720.0].map(|seconds| duration(Duration::from_secs_f64(seconds))), ["1.2s", "1m12s", "1h02m"]);
        let eur = |minor_units| money(Some(&Money { currency: "EUR".into(), minor_units }));
        assert_eq!([eur(123_456), eur(-5), money(None)], ["EUR 1,234.56", "EUR -0.05", "–"]);
        let (early, late) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        assert_eq!((milliseconds(early, late), milliseconds(late, early)), (1500.0, -1500.0));
        assert_eq!(clock(late), "00:00:01.500");
    }
}
