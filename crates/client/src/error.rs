use std::{collections::HashMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call failed in the end, after all retries that made sense.
#[derive(Debug, Clone)]
pub struct Error {
    status: Box<Status>,
    reason: String,
    metadata: HashMap<String, String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    attempts: u32,
    request_id: String,
}

/// A bad field of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
}

impl Error {
    pub(crate) fn new(status: Status, attempts: u32, request_id: &str) -> Self {
        let details = status.get_error_details();
        let (reason, metadata) = match details.error_info() {
            Some(info) => (info.reason.clone(), info.metadata.clone()),
            None => (String::new(), HashMap::new()),
        };
        let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
        let violations =
            violations.iter().map(|violation| Violation { field: violation.field.clone(), description: violation.description.clone() });
        Self {
            reason,
            metadata,
            violations: violations.collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            attempts,
            request_id: request_id.to_owned(),
            status: Box::new(status),
        }
    }

    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// Stable reason, such as `INSUFFICIENT_STOCK`; empty when the service was not reached.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn message(&self) -> &str {
        self.status.message()
    }

    /// Figures that belong to the reason, such as `available`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// All bad fields of the request.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// When the service asked to be called again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How often the call was sent.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Id under which a command was sent: repeated under it, it takes effect once. Empty for queries.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Whether a command that failed so may have taken effect all the same.
    pub fn outcome_is_unknown(&self) -> bool {
        matches!(self.code(), Code::DeadlineExceeded | Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
    }

    pub fn status(&self) -> &Status {
        &self.status
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = if self.reason.is_empty() { "" } else { &format!(" ({})", self.reason) };
        write!(f, "{:?}{reason}: {}", self.code(), self.message())?;
        if self.attempts > 1 {
            write!(f, " [after {} attempts]", self.attempts)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
