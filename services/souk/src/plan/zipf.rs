//! What share of reads a cache answers when few entities are asked for often and many seldom.

/// The first `TERMS` terms are added one by one, so that what is left out of the rest is below a double's precision.
const TERMS: u64 = 100;

/// The generalised harmonic number: the sum of k^-s for k from 1 to n. The rest beyond the first terms by the Euler–Maclaurin
/// formula (NIST DLMF 2.10.1).
pub fn harmonic(n: u64, s: f64) -> f64 {
    let head: f64 = (1..=n.min(TERMS)).rev().map(|k| (k as f64).powf(-s)).sum();
    if n <= TERMS {
        return head;
    }
    let (m, n) = (TERMS as f64, n as f64);
    let integral = if (s - 1.0).abs() < 1e-9 { (n / m).ln() } else { (n.powf(1.0 - s) - m.powf(1.0 - s)) / (1.0 - s) };
    let ends = (n.powf(-s) - m.powf(-s)) / 2.0;
    let slopes = s / 12.0 * (m.powf(-s - 1.0) - n.powf(-s - 1.0));
    let bends = s * (s + 1.0) * (s + 2.0) / 720.0 * (n.powf(-s - 3.0) - m.powf(-s - 3.0));
    head + integral + ends + slopes + bends
}

/// The share of reads that go to the `cached` most popular of `entities`, when the k-th is asked for in proportion to k^-s (Zipf's law;
/// Breslau et al., "Web Caching and Zipf-like Distributions", INFOCOM 1999). A cache that admits by frequency, as moka's TinyLFU does,
/// comes close to it; writes cost nothing, for the change feed replaces what is cached.
pub fn hit_ratio(cached: u64, entities: u64, s: f64) -> f64 {
    if cached >= entities { 1.0 } else { harmonic(cached, s) / harmonic(entities, s) }
}

/// The fewest entities that have to be cached for this share of reads.
pub fn entries_for(ratio: f64, entities: u64, s: f64) -> u64 {
    let (mut low, mut high) = (0, entities);
    while low < high {
        let middle = low + (high - low) / 2;
        if hit_ratio(middle, entities, s) >= ratio { high = middle } else { low = middle + 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn harmonic_numbers_are_those_of_the_books() {
        // 25/12; H(10^6) of OEIS A001008; ζ(2) − 1/n + 1/(2n²) − 1/(6n³) of Euler.
        assert!((harmonic(4, 1.0) - 25.0 / 12.0).abs() < 1e-15);
        assert!((harmonic(1_000_000, 1.0) - 14.392_726_722_865_723).abs() < 1e-11);
        let n = 1e5;
        let basel = std::f64::consts::PI.powi(2) / 6.0 - 1.0 / n + 0.5 / (n * n) - 1.0 / (6.0 * n * n * n);
        assert!((harmonic(100_000, 2.0) - basel).abs() < 1e-12);
        assert!((harmonic(5000, 0.0) - 5000.0).abs() < 1e-9);
    }

    #[test]
    fn the_formula_for_the_rest_gives_what_adding_up_gives() {
        for s in [0.5, 0.8, 0.99, 1.0, 1.2] {
            let added: f64 = (1..=50_000u32).rev().map(|k| f64::from(k).powf(-s)).sum();
            assert!((harmonic(50_000, s) / added - 1.0).abs() < 1e-12, "exponent {s}");
        }
    }

    #[test]
    fn half_of_the_reads_go_to_few_entities() {
        assert_eq!(entries_for(0.5, 100_000, 1.0), 237);
        assert_eq!(entries_for(1.0, 100_000, 1.0), 100_000);
        assert_eq!(hit_ratio(100_000, 100_000, 1.0), 1.0);
        assert_eq!(hit_ratio(0, 100_000, 1.0), 0.0);
        // Without popular entities the share of reads is the share of entities.
        assert!((hit_ratio(25_000, 100_000, 0.0) - 0.25).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn a_larger_cache_never_answers_less(cached in 0u64..2_000_000, more in 0u64..100_000, s in 0.0f64..2.0) {
            let of = |cached| hit_ratio(cached, 2_000_000, s);
            prop_assert!(of(cached) <= of(cached + more) && (0.0..=1.0).contains(&of(cached)));
        }

        #[test]
        fn what_is_asked_for_is_reached_with_the_fewest_entries(ratio in 0.01f64..1.0, entities in 1u64..1_000_000, s in 0.0f64..2.0) {
            let entries = entries_for(ratio, entities, s);
            prop_assert!(hit_ratio(entries, entities, s) >= ratio);
            prop_assert!(hit_ratio(entries - 1, entities, s) < ratio);
        }
    }
}
