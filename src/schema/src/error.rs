//! Errors and outcomes.

use ocivisor_core::error::{Error, ErrorKind, one_line};
use serde::{Deserialize, Serialize};

use crate::text::Text;

/// An error: see [`ocivisor_core::error::Error`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorV1 {
    /// Stable name of the kind.
    pub kind: Text<ErrorKind>,
    /// One line for people.
    pub message: String,
    /// What to do, if known.
    #[serde(default)]
    pub hint: Option<String>,
}

impl From<&Error> for ErrorV1 {
    fn from(error: &Error) -> Self {
        Self { kind: Text(error.kind), message: error.message.clone(), hint: error.hint.clone() }
    }
}

impl From<ErrorV1> for Error {
    fn from(error: ErrorV1) -> Self {
        Self {
            kind: error.kind.0,
            message: one_line(&error.message),
            hint: error.hint.as_deref().map(one_line),
        }
    }
}

/// How an operation ended: `"ok"` or `{"error": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeV1 {
    /// As wished.
    Ok,
    /// Not.
    Error(ErrorV1),
}

impl From<&Result<(), Error>> for OutcomeV1 {
    fn from(result: &Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(error) => Self::Error(error.into()),
        }
    }
}

impl From<OutcomeV1> for Result<(), Error> {
    fn from(outcome: OutcomeV1) -> Self {
        match outcome {
            OutcomeV1::Ok => Ok(()),
            OutcomeV1::Error(error) => Err(error.into()),
        }
    }
}
