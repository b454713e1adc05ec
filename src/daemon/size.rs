//! Parsers of sizes and counts on the command line.

use crate::diagnostics::UserError;

/// The error for text that is no size.
const WANTED: &str = "a number of bytes, or such as 10G, is wanted";
/// The error for a size beyond the range of POSIX `off_t`.
const TOO_LARGE: &str = "that is too large: less than 8E is wanted";

/// Parses a number of bytes: plain, or with K, M, G, T, P or E (also KiB, ...) for powers of 1024.
///
/// # Errors
/// A message that says what is wanted.
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let short = unit.strip_suffix("iB").unwrap_or(unit);
    let power = match (short, unit.len() > short.len()) {
        ("", false) => 0,
        ("K" | "k", _) => 1,
        ("M", _) => 2,
        ("G", _) => 3,
        ("T", _) => 4,
        ("P", _) => 5,
        ("E", _) => 6,
        _ => return Err(WANTED),
    };
    if number.is_empty() {
        return Err(WANTED);
    }
    // They are all digits, so parsing fails only if there are too many.
    let number: u64 = number.parse().map_err(|_| TOO_LARGE)?;
    let bytes = number.checked_mul(1024u64.pow(power)).ok_or(TOO_LARGE)?;
    match i64::try_from(bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(TOO_LARGE),
    }
}

/// Parses the value of `--size`.
///
/// # Errors
/// A usage error that says what is wanted.
pub(crate) fn size_option(text: Option<&str>) -> Result<Option<u64>, UserError> {
    let wrong = |text: &str, wanted| {
        UserError::usage(format!("--size {text}: {wanted}"))
            .with_hint("a number of bytes, or of K, M, G, T: --size 10G")
    };
    text.map(|text| parse_size(text).map_err(|wanted| wrong(text, wanted)))
        .transpose()
}

/// Parses a count. Used together with `allow_negative_numbers`, so that a negative number is a
/// wrong value and not an unknown option.
///
/// # Errors
/// A message that says what is wanted.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    let wanted = || format!("a whole number from 0 to {} is wanted", u32::MAX);
    let number: u32 = text.parse().map_err(|_| wanted())?;
    usize::try_from(number).map_err(|_| wanted())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("1K", 1024),
            ("1k", 1024),
            ("10G", 10 << 30),
            ("2MiB", 2 << 20),
            ("3T", 3 << 40),
            ("1P", 1 << 50),
            ("7E", 7 << 60),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "", "G", "-1", "-1G", "+1", "1iB", "1GB", "1 G", "1.5G", "0x10", "1Z", "G1",
        ] {
            assert_eq!(parse_size(text), Err(WANTED), "{text}");
        }
        for text in [
            "8E",
            "17E",
            "99999999999T",
            "99999999999P",
            "9223372036854775808",
            "18446744073709551616",
            "99999999999999999999999999",
        ] {
            assert_eq!(parse_size(text), Err(TOO_LARGE), "{text}");
        }
        let error = size_option(Some("17E")).unwrap_err();
        assert_eq!(error.message, format!("--size 17E: {TOO_LARGE}"));
        assert_eq!(size_option(None), Ok(None));
    }

    #[test]
    fn counts() {
        assert_eq!(parse_count("0"), Ok(0));
        assert_eq!(parse_count("24"), Ok(24));
        for text in ["-1", "", "x", "1.5", "99999999999999999999"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }
}
