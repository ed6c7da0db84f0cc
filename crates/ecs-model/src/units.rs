//! Task sizes: the spellings of cpu and memory, and the sizes that Fargate has.

/// Most CPU units of a task: 192 vCPU.
const CPU_UNITS_MAX: u64 = 196_608;
/// Fewest CPU units of a task.
const CPU_UNITS_MIN: u64 = 128;
/// Units of a vCPU, MiB of a GB.
const SCALE: u64 = 1024;
/// More digits are no size.
const DIGITS_MAX: usize = 9;

/// CPU units from `256`, `1 vCPU`, `.25 vcpu`.
pub fn cpu_units(text: &str) -> Option<u64> {
    let units = scaled(text, &["vcpus", "vcpu"])?;
    (CPU_UNITS_MIN..=CPU_UNITS_MAX).contains(&units).then_some(units)
}

/// MiB from `512`, `1GB`, `0.5 GB`.
pub fn memory_mib(text: &str) -> Option<u64> {
    scaled(text, &["gb"]).filter(|mib| *mib > 0)
}

/// A whole number, or a decimal number with a unit that is 1,024 times as much and comes out whole.
fn scaled(text: &str, units: &[&str]) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = |t: &str| t.len() <= DIGITS_MAX && t.bytes().all(|b| b.is_ascii_digit());
    let Some(number) = units.iter().find_map(|unit| lower.strip_suffix(unit)) else {
        return lower.parse().ok().filter(|_| digits(&lower));
    };
    let (whole, part) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) {
        return None;
    }
    let divisor = 10u64.pow(part.len() as u32);
    let thousandths: u64 = format!("0{whole}{part}").parse().ok()?;
    let product = thousandths.checked_mul(SCALE)?;
    (product % divisor == 0).then_some(product / divisor)
}

/// From, to and step, in MiB.
type Steps = (u64, u64, u64);

/// CPU units, then the memory that goes with them.
const FARGATE: [(u64, &[Steps]); 8] = [
    (256, &[(512, 512, 512), (1024, 2048, 1024)]),
    (512, &[(1024, 4096, 1024)]),
    (1024, &[(2048, 8192, 1024)]),
    (2048, &[(4096, 16_384, 1024)]),
    (4096, &[(8192, 30_720, 1024)]),
    (8192, &[(16_384, 61_440, 4096)]),
    (16_384, &[(32_768, 122_880, 8192)]),
    (32_768, &[(61_440, 122_880, 61_440), (249_856, 249_856, 1)]),
];

/// Every Fargate size: CPU units and MiB.
pub fn fargate_sizes() -> impl Iterator<Item = (u64, u64)> {
    let ranges = FARGATE.iter().flat_map(|(cpu, ranges)| ranges.iter().map(move |r| (*cpu, *r)));
    ranges.flat_map(|(cpu, (from, to, step))| {
        (from..=to).step_by(usize::try_from(step).unwrap_or(usize::MAX)).map(move |mib| (cpu, mib))
    })
}

/// Is that a Fargate size?
pub fn is_fargate_size(cpu: u64, mib: u64) -> bool {
    fargate_sizes().any(|size| size == (cpu, mib))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_are_77_fargate_sizes() {
        assert_eq!(fargate_sizes().count(), 77);
        let classic = fargate_sizes().filter(|(cpu, _)| *cpu <= 4096).count();
        assert_eq!(classic, 50);
        for (cpu, mib, is) in [
            (256, 512, true),
            (256, 1536, false),
            (256, 4096, false),
            (512, 512, false),
            (4096, 30_720, true),
            (8192, 17_408, false),
            (32_768, 249_856, true),
            (3000, 4096, false),
        ] {
            assert_eq!(is_fargate_size(cpu, mib), is, "{cpu} {mib}");
        }
    }

    #[test]
    fn spellings() {
        for (text, units) in [
            ("256", Some(256)),
            ("1 vCPU", Some(1024)),
            (".25 vCPU", Some(256)),
            ("0.5vcpu", Some(512)),
            ("16 vCPUs", Some(16_384)),
            ("0.3 vcpu", None),
            ("vcpu", None),
            (". vcpu", None),
            ("-1", None),
            ("+256", None),
            ("0", None),
            ("1e3", None),
            ("196609", None),
            ("99999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(cpu_units(text), units, "{text}");
        }
        for (text, mib) in [
            ("512", Some(512)),
            ("1GB", Some(1024)),
            ("3 GB", Some(3072)),
            ("0.5 gb", Some(512)),
            ("0", None),
            ("1TB", None),
        ] {
            assert_eq!(memory_mib(text), mib, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = (cpu_units(&text), memory_mib(&text));
        }
    }
}
