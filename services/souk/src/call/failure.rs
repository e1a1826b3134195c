use std::fmt::Write;

use tonic::Status;
use tonic_types::StatusExt;

/// A failed call for people: status, reason, and every detail on a line of its own.
pub fn readable(status: &Status) -> String {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| format!(" {}", info.reason)).unwrap_or_default();
    // The message of a bad request repeats its first fields.
    let message = details.bad_request().map_or_else(|| format!(": {}", status.message()), |_| String::new());
    let mut text = format!("{}{reason}{message}", souk_runtime::code_name(status.code()));
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {line}");
    };
    if let Some(info) = details.error_info() {
        let mut figures: Vec<_> = info.metadata.iter().collect();
        figures.sort();
        figures.into_iter().for_each(|(key, value)| line(format!("{key} = {value}")));
    }
    if let Some(bad) = details.bad_request() {
        bad.field_violations.iter().for_each(|violation| line(format!("field {}: {}", violation.field, violation.description)));
    }
    if let Some(failed) = details.precondition_failure() {
        let unmet = failed.violations.iter().filter(|violation| violation.description != status.message());
        unmet.for_each(|violation| line(format!("{} {}: {}", violation.r#type, violation.subject, violation.description)));
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        line(format!("may be repeated after {}", humantime::format_duration(delay)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use souk_runtime::Failure;

    use super::*;

    #[test]
    fn every_detail_is_shown() {
        let failure = Failure::invalid("INVALID_FIELDS", "two bad fields")
            .with("method", "PlaceOrder")
            .field("lines[0].quantity", "want 1–999")
            .precondition("STOCK", "p-1", "receive stock first")
            .retry_after(Duration::from_millis(250));
        assert_eq!(
            readable(&failure.into()),
            "INVALID_ARGUMENT INVALID_FIELDS\n  method = PlaceOrder\n  field lines[0].quantity: want 1–999\n  \
             STOCK p-1: receive stock first\n  may be repeated after 250ms"
        );
    }
}
