use std::{borrow::Cow, collections::HashMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

/// Domain of every ErrorInfo: reasons are unique within it.
pub const ERROR_DOMAIN: &str = "souk";

/// Why a call failed, as the caller will read it: a status code, a stable reason, and what helps to mend it. Becomes
/// a [`Status`] with google.rpc details.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub code: Code,
    /// Stable, SCREAMING_SNAKE; what programs match on.
    pub reason: Cow<'static, str>,
    /// One line for people.
    pub message: String,
    /// Figures that belong to the reason, such as the units available.
    pub metadata: HashMap<String, String>,
    /// All bad fields of the request.
    pub field_violations: Vec<(String, String)>,
    /// State that must be mended first: (type, subject, description).
    pub preconditions: Vec<(String, String, String)>,
    /// The same call may succeed after this time.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(code: Code, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            metadata: HashMap::new(),
            field_violations: Vec::new(),
            preconditions: Vec::new(),
            retry_after: None,
        }
    }

    /// INVALID_ARGUMENT: the request is wrong whatever the state.
    pub fn invalid(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason, message)
    }

    pub fn not_found(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, message)
    }

    pub fn already_exists(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, reason, message)
    }

    /// FAILED_PRECONDITION: a rule refuses in the present state.
    pub fn refused(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    /// ABORTED: others were faster; read again and decide anew.
    pub fn aborted(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::Aborted, reason, message)
    }

    /// UNAVAILABLE: passing trouble, repeat the call after `retry_after`.
    pub fn unavailable(reason: impl Into<Cow<'static, str>>, message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(Code::Unavailable, reason, message).retry_after(retry_after)
    }

    /// RESOURCE_EXHAUSTED: too much at once, repeat the call after `retry_after`.
    pub fn exhausted(reason: impl Into<Cow<'static, str>>, message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(Code::ResourceExhausted, reason, message).retry_after(retry_after)
    }

    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
    }

    /// INTERNAL: our own fault. The message must not tell the caller more than that.
    pub fn internal(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::Internal, reason, message)
    }

    /// Adds a figure to the reason.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.into(), value.to_string());
        self
    }

    /// Names a bad field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.field_violations.push((field.into(), description.into()));
        self
    }

    /// Names a state that must be mended first.
    #[must_use]
    pub fn precondition(mut self, kind: impl Into<String>, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.preconditions.push((kind.into(), subject.into(), description.into()));
        self
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut details = ErrorDetails::with_error_info(failure.reason, ERROR_DOMAIN, failure.metadata);
        if !failure.field_violations.is_empty() {
            let violations = failure.field_violations.into_iter().map(|(field, description)| FieldViolation::new(field, description));
            details.set_bad_request(violations.collect::<Vec<_>>());
        }
        if !failure.preconditions.is_empty() {
            let violations = failure.preconditions.into_iter().map(|(kind, subject, text)| PreconditionViolation::new(kind, subject, text));
            details.set_precondition_failure(violations.collect::<Vec<_>>());
        }
        if failure.retry_after.is_some() {
            details.set_retry_info(failure.retry_after);
        }
        Status::with_error_details(failure.code, failure.message, details)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Failure {}

/// Collects the bad fields of a request, so that the caller learns of them at once: of all, or of the first ones and how
/// many more there are.
#[derive(Debug, Default)]
pub struct Violations {
    told: Vec<(String, String)>,
    bytes: usize,
    more: usize,
}

/// Most that is told of bad fields. It travels in headers, of which many peers take no more than 8 KiB.
const TOLD_BYTES: usize = 4 * 1024;

impl Violations {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        let (field, description) = (field.into(), description.into());
        self.bytes += field.len() + description.len();
        if self.bytes <= TOLD_BYTES || self.told.is_empty() {
            self.told.push((field, description));
        } else {
            self.more += 1;
        }
    }

    /// Adds the violation unless `fine`.
    pub fn require(&mut self, fine: bool, field: impl Into<String>, description: impl Into<String>) {
        if !fine {
            self.add(field, description);
        }
    }

    /// The value of a parsed field; its error becomes a violation.
    pub fn check<T, E: fmt::Display>(&mut self, field: impl Into<String>, parsed: Result<T, E>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, error.to_string());
                None
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// # Errors
    /// INVALID_ARGUMENT (INVALID_FIELDS) with all of them when there is any.
    pub fn finish(self) -> Result<(), Failure> {
        if self.told.is_empty() {
            return Ok(());
        }
        let listed: Vec<_> = self.told.iter().take(3).map(|(field, description)| format!("{field}: {description}")).collect();
        let more = match self.told.len() + self.more - listed.len() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let mut failure = Failure::invalid("INVALID_FIELDS", format!("{}{more}", listed.join("; ")));
        failure.field_violations = self.told;
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_all_its_details() {
        let failure = Failure::refused("INSUFFICIENT_STOCK", "3 of 5 units are available")
            .with("available", 3)
            .precondition("STOCK", "products/p-1", "receive stock first")
            .retry_after(Duration::from_millis(250));
        let status = Status::from(failure);
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "3 of 5 units are available"));
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str(), info.metadata["available"].as_str()), ("INSUFFICIENT_STOCK", "souk", "3"));
        assert_eq!(details.precondition_failure().unwrap().violations[0].subject, "products/p-1");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(250)));
        assert!(details.bad_request().is_none());
    }

    #[test]
    fn all_bad_fields_are_told_at_once() {
        let mut violations = Violations::new();
        assert_eq!(violations.check("quantity", "7".parse::<u32>()), Some(7));
        assert_eq!(violations.check("lines[0].quantity", "x".parse::<u32>()), None);
        violations.require(false, "title", "want 1–200 characters");
        violations.require(true, "category", "never seen");
        let failure = violations.finish().unwrap_err();
        assert_eq!(failure.message, "lines[0].quantity: invalid digit found in string; title: want 1–200 characters");
        let details = Status::from(failure).get_error_details();
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["lines[0].quantity", "title"]);
        assert!(Violations::new().finish().is_ok());
    }

    #[test]
    fn countless_bad_fields_still_fit_into_headers() {
        let mut violations = Violations::new();
        for index in 0..100_000 {
            violations.add(format!("ids[{index}]"), "want 1–64 letters, digits, '-' or '_', beginning with a letter or digit");
        }
        let failure = violations.finish().unwrap_err();
        assert!(failure.message.ends_with("(and 99997 more)") && failure.field_violations[0].0 == "ids[0]", "{}", failure.message);
        let mut headers = http::HeaderMap::new();
        Status::from(failure).add_header(&mut headers).unwrap();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        assert!((2_000..8_000).contains(&bytes), "{bytes} bytes of headers");
    }
}
