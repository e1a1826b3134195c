use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// What can go wrong at a write store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or gave up on us; nothing is known to have been written.
    #[error("write store unavailable: {0}")]
    Unavailable(String),
    /// The database has no room on its disk for what the statement writes, and wrote nothing (SQLSTATE 53100).
    #[error("the write store's disk is full: {0}")]
    Full(String),
    /// The connection was lost while a statement was under way: it may or may not have been carried out.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The statement was refused because of its data and wrote nothing (SQLSTATE 22…, 23…, 54…).
    #[error("refused by the database ({sqlstate}): {message}")]
    Data { sqlstate: String, message: String },
    /// What is stored cannot be read: a bug or damage.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The databases do not fit the configuration or each other.
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_) | Self::Unknown(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(refusal) => {
                let sqlstate = refusal.code().unwrap_or_default().into_owned();
                // A server that has no room for its log panics, with the same code; what had been logged by then it makes good.
                let severity = refusal.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
                if sqlstate == "53100" && severity == Some(PgSeverity::Error) {
                    return Self::Full(refusal.message().to_owned());
                }
                match sqlstate.get(..2) {
                    Some("22" | "23" | "54") => Self::Data { sqlstate, message: refusal.message().to_owned() },
                    Some("42" | "0A") => Self::Setup(format!("{sqlstate}: {}", refusal.message())),
                    _ => Self::Unavailable(format!("{sqlstate}: {}", refusal.message())),
                }
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => Self::Corrupt(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<sea_orm_migration::sea_orm::DbErr> for StoreError {
    fn from(error: sea_orm_migration::sea_orm::DbErr) -> Self {
        use sea_orm_migration::sea_orm::{DbErr, RuntimeErr};
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(_)) | DbErr::ConnectionAcquire(_) => Self::Unavailable(error.to_string()),
            other => Self::Setup(other.to_string()),
        }
    }
}
