//! Errors on the wire: a stable code per kind, and facts for programs in `data`.

use std::fmt;

use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::{
    INVALID_PARAMS_CODE, INVALID_REQUEST_CODE, METHOD_NOT_FOUND_CODE, OVERSIZED_REQUEST_CODE,
    PARSE_ERROR_CODE,
};
use ocivisor_core::error::{Error, ErrorKind, one_line};
use ocivisor_core::ids::{OpId, VmId};
use ocivisor_schema::Text;
use serde::{Deserialize, Serialize};

/// A failure of a method: core's error and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Kind, message, hint.
    pub error: Error,
    /// The VM it is about.
    pub vm: Option<VmId>,
    /// The operation it is about.
    pub op: Option<OpId>,
    /// The step of that operation.
    pub step: Option<String>,
}

/// `data` of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorData {
    /// Name of the kind.
    pub kind: String,
    /// What to do, if known.
    #[serde(default)]
    pub hint: Option<String>,
    /// Whether the same request may work a moment later.
    #[serde(default)]
    pub retryable: bool,
    /// The VM.
    #[serde(default)]
    pub vm: Option<Text<VmId>>,
    /// The operation.
    #[serde(default)]
    pub op: Option<Text<OpId>>,
    /// The step.
    #[serde(default)]
    pub step: Option<String>,
}

impl ApiError {
    /// An error of `kind`.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Error::new(kind, message).into()
    }

    /// The same, about this VM.
    #[must_use]
    pub fn vm(mut self, vm: &VmId) -> Self {
        self.vm = Some(vm.clone());
        self
    }

    /// The same, about this operation.
    #[must_use]
    pub fn op(mut self, op: OpId) -> Self {
        self.op = Some(op);
        self
    }

    /// The same, at this step.
    #[must_use]
    pub fn step(mut self, step: impl fmt::Display) -> Self {
        self.step = Some(one_line(&step.to_string()));
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for ApiError {}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self { error, vm: None, op: None, step: None }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        error.error
    }
}

/// The code of a kind; codes never change and are outside of those that JSON-RPC reserves.
#[must_use]
pub fn code_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Invalid => 1001,
        ErrorKind::NotFound => 1002,
        ErrorKind::Conflict => 1003,
        ErrorKind::Permission => 1004,
        ErrorKind::Timeout => 1005,
        ErrorKind::Exhausted => 1006,
        ErrorKind::Unsupported => 1007,
        ErrorKind::Image => 1008,
        ErrorKind::Integrity => 1009,
        ErrorKind::GuestExited => 1010,
        ErrorKind::Cancelled => 1011,
        ErrorKind::Host => 1012,
    }
}

/// The kind of a code; errors of JSON-RPC itself have the kind that fits.
#[must_use]
pub fn kind_of(code: i32) -> Option<ErrorKind> {
    match code {
        INVALID_PARAMS_CODE | INVALID_REQUEST_CODE | PARSE_ERROR_CODE | OVERSIZED_REQUEST_CODE => {
            Some(ErrorKind::Invalid)
        }
        METHOD_NOT_FOUND_CODE => Some(ErrorKind::Unsupported),
        _ => ErrorKind::ALL.into_iter().find(|kind| code_of(*kind) == code),
    }
}

impl From<ApiError> for ErrorObjectOwned {
    fn from(error: ApiError) -> Self {
        let data = ErrorData {
            kind: error.error.kind.name().to_owned(),
            retryable: error.error.is_retryable(),
            hint: error.error.hint,
            vm: error.vm.map(Text),
            op: error.op.map(Text),
            step: error.step,
        };
        Self::owned(code_of(error.error.kind), error.error.message, Some(data))
    }
}

impl From<&ErrorObjectOwned> for ApiError {
    /// Never fails: a code or data that this build does not know becomes [`ErrorKind::Host`], or
    /// what JSON-RPC's own code means, with the message kept.
    fn from(object: &ErrorObjectOwned) -> Self {
        let raw = object.data().map(|raw| raw.get());
        let data = raw.and_then(|raw| serde_json::from_str::<ErrorData>(raw).ok());
        let kind = data
            .as_ref()
            .and_then(|data| ErrorKind::from_name(&data.kind))
            .or_else(|| kind_of(object.code()))
            .unwrap_or(ErrorKind::Host);
        let Some(data) = data else {
            // Errors of JSON-RPC itself carry a text, if anything.
            let detail = raw.and_then(|raw| serde_json::from_str::<String>(raw).ok());
            let mut error = Error::new(kind, object.message());
            if let Some(detail) = detail {
                error = Error::new(kind, format!("{}: {detail}", object.message()));
            }
            if object.code() == METHOD_NOT_FOUND_CODE {
                error = error.hint("the daemon is older than this client: upgrade it");
            }
            return error.into();
        };
        let mut error = Error::new(kind, object.message());
        error.hint = data.hint.as_deref().map(one_line);
        Self {
            error,
            vm: data.vm.map(|vm| vm.0),
            op: data.op.map(|op| op.0),
            step: data.step.as_deref().map(one_line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_code() {
        for kind in ErrorKind::ALL {
            assert_eq!(kind_of(code_of(kind)), Some(kind));
            let reserved = -32768..=-32000;
            assert!(!reserved.contains(&code_of(kind)));
        }
    }

    #[test]
    fn errors_round_trip() {
        for kind in ErrorKind::ALL {
            let error = ApiError::from(Error::new(kind, "disk is in use").hint("stop one-1"))
                .vm(&"one-7".parse().unwrap())
                .op(OpId(3))
                .step("mount root");
            let object = ErrorObjectOwned::from(error.clone());
            assert_eq!(ApiError::from(&object), error);
        }
    }

    #[test]
    fn unknown_codes_and_data_are_read_as_failures_of_the_host() {
        for data in [None, Some(serde_json::json!({"kind": "newer"}))] {
            let object = ErrorObjectOwned::owned(1999, "from the future\n", data);
            let error = ApiError::from(&object);
            assert_eq!(error.error.kind, ErrorKind::Host);
            assert_eq!(error.to_string(), "from the future");
        }
    }

    #[test]
    fn errors_of_json_rpc_have_a_kind() {
        let object =
            ErrorObjectOwned::owned(INVALID_PARAMS_CODE, "Invalid params", Some("no field vm"));
        let error = ApiError::from(&object);
        assert_eq!(error.error.kind, ErrorKind::Invalid);
        assert_eq!(error.to_string(), "Invalid params: no field vm");
    }
}
