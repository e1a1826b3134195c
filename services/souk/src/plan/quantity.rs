//! Numbers as people write and read them: `10k`, `1M`, `16TB`, `10%`.

use crate::paint;

const SCALE: [(&str, f64); 4] = [("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];
const BINARY: [(&str, f64); 4] = [("Ki", 1024.0), ("Mi", 1_048_576.0), ("Gi", 1_073_741_824.0), ("Ti", 1_099_511_627_776.0)];

/// `10k`, `1M`, `10,000` or `0.5`, above zero.
pub fn parse_number(text: &str) -> Result<f64, String> {
    scaled(text, &SCALE).ok_or_else(|| format!("{text:?} is no number above zero such as 1000, 10k or 1M"))
}

/// A whole number in the same forms.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let number = parse_number(text)?;
    if number.fract() == 0.0 && number <= 1e15 { Ok(number as u64) } else { Err(format!("{text:?} is no whole number up to 10^15")) }
}

/// `1KB` is 1,000 bytes, `1KiB` is 1,024.
pub fn parse_bytes(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches(['B', 'b']);
    let number = number.strip_suffix('K').map_or_else(|| number.to_owned(), |number| format!("{number}k"));
    scaled(&number, &BINARY)
        .or_else(|| scaled(&number, &SCALE))
        .ok_or_else(|| format!("{text:?} is no size such as 1000, 1KB, 64MiB or 16TB"))
}

/// `10%` or `0.1`, from 0 to 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let (number, whole) = text.trim().strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().ok().map(|number| number / whole).filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no share such as 10% or 0.1"))
}

fn scaled(text: &str, scale: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim().replace([',', '_'], "");
    let (number, factor) =
        scale.iter().find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, *factor))).unwrap_or((text.as_str(), 1.0));
    number.trim().parse::<f64>().ok().map(|number| number * factor).filter(|number| number.is_finite() && *number > 0.0)
}

/// 1,000 or 0.25: whole numbers above ten, three digits below.
pub fn number(number: f64) -> String {
    if number >= 10.0 || number.fract() == 0.0 { paint::thousands(number.round() as u64) } else { digits(number) }
}

/// 86.4 GB, in powers of a thousand as disks and networks count.
pub fn bytes(bytes: f64) -> String {
    let unit = [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)].into_iter().find(|(_, size)| bytes >= size * 0.9995);
    unit.map_or_else(|| format!("{} B", number(bytes)), |(unit, size)| format!("{} {unit}", digits(bytes / size)))
}

/// 64 MiB, as memory is given.
pub fn memory(mib: u64) -> String {
    if mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

/// 8 %.
pub fn share(share: f64) -> String {
    format!("{} %", digits(share * 100.0))
}

/// Three digits, without zeros at the end.
fn digits(number: f64) -> String {
    let places = match number.abs() {
        0.0..9.995 => 2,
        9.995..99.95 => 1,
        _ => return paint::thousands(number.round() as u64),
    };
    let text = format!("{number:.places$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(["1000", "10k", "1M", "10,000", "1_000", "0.5"].map(|text| parse_number(text).unwrap()), [1e3, 1e4, 1e6, 1e4, 1e3, 0.5]);
        assert_eq!(
            ["1000", "1KB", "1 kB", "1KiB", "16TB", "64MiB"].map(|text| parse_bytes(text).unwrap()),
            [1e3, 1e3, 1e3, 1024.0, 16e12, 67_108_864.0]
        );
        assert_eq!(["10%", "0.1", "100 %", "0"].map(|text| parse_share(text).unwrap()), [0.1, 0.1, 1.0, 0.0]);
        assert_eq!(parse_count("100M"), Ok(100_000_000));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "many", "-1", "0", "inf", "NaN", "1e400", "k"] {
            assert!(parse_number(text).is_err() && parse_bytes(text).is_err(), "{text}");
        }
        for text in ["110%", "-1%", "1.1", "half"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert!(parse_count("0.5").is_err());
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!([1000.0, 4539.48, 0.25, 9.0, 1.8].map(number), ["1,000", "4,539", "0.25", "9", "1.8"]);
        assert_eq!([1e6, 86.4e9, 31.536e12, 999.0, 3.1536e15].map(bytes), ["1 MB", "86.4 GB", "31.5 TB", "999 B", "3.15 PB"]);
        assert_eq!([0.08, 0.945, 1.0, 0.0].map(share), ["8 %", "94.5 %", "100 %", "0 %"]);
        assert_eq!([64, 1024, 4096].map(memory), ["64 MiB", "1 GiB", "4 GiB"]);
    }
}
