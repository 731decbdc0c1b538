//! Go's reading of JSON, imitated in front of serde.
//!
//! Names match in any case, `null` means zero for anything, the body may be `null`, and what
//! follows the first value is ignored. Everything is brought into one form here, so that the
//! wire types need no attribute for it.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A body that is not what its route expects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Nothing was sent; the text is what the Go server answers.
    #[error("EOF")]
    Empty,
    /// Some other JSON where an object belongs.
    #[error("the body is not a JSON object")]
    NotObject,
    /// Not JSON, or not of the right shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// Reads what a client sent.
pub(crate) fn decode_request<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    decode(body, true)
}

/// Reads what a server sent: the same, but names are exact.
pub(crate) fn decode_response<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    decode(body, false)
}

/// Reads what a client sent, where that is a list or a number; `None` for `null`.
pub(crate) fn decode_bare<T: DeserializeOwned>(body: &[u8]) -> Result<Option<T>, DecodeError> {
    match first(body)? {
        Value::Null => Ok(None),
        mut value => {
            normalize(&mut value, true);
            Ok(Some(serde_json::from_value(value)?))
        }
    }
}

fn first(body: &[u8]) -> Result<Value, DecodeError> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    Ok(values.next().ok_or(DecodeError::Empty)??)
}

fn decode<T: DeserializeOwned>(body: &[u8], any_case: bool) -> Result<T, DecodeError> {
    let mut value = first(body)?;
    if value.is_null() {
        value = Value::Object(Map::new());
    }
    // serde would read a list as an object's members in order.
    if !value.is_object() {
        return Err(DecodeError::NotObject);
    }
    normalize(&mut value, any_case);
    Ok(serde_json::from_value(value)?)
}

/// Drops members that are `null`, and lower-cases names.
fn normalize(value: &mut Value, any_case: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|i| normalize(i, any_case)),
        Value::Object(members) => {
            *members = std::mem::take(members)
                .into_iter()
                .filter(|(_, member)| !member.is_null())
                .map(|(name, mut member)| {
                    // The names inside are the user's, not ours.
                    if name.eq_ignore_ascii_case("properties") {
                        null_to_empty(&mut member);
                    } else {
                        normalize(&mut member, any_case);
                    }
                    (
                        if any_case {
                            name.to_ascii_lowercase()
                        } else {
                            name
                        },
                        member,
                    )
                })
                .collect();
        }
        _ => {}
    }
}

fn null_to_empty(value: &mut Value) {
    if let Value::Object(members) = value {
        for member in members.values_mut().filter(|m| m.is_null()) {
            *member = Value::String(String::new());
        }
    }
}

/// Writes one value and the newline that Go's encoder ends it with.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut body = serde_json::to_vec(value)?;
    body.push(b'\n');
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::super::{WireContainerSpec, WireStop};
    use super::*;

    #[test]
    fn go_readings_are_accepted() {
        let spec: WireContainerSpec = decode_request(
            br#"{"Handle":"web-1","IMAGE":null,"limits":null,"env":null,"unknown":[1],
                "properties":{"Owner":"Me","none":null},"grace_time":300000000000} trailing"#,
        )
        .unwrap();
        assert_eq!(spec.handle, "web-1");
        assert_eq!(spec.grace_time, 300_000_000_000);
        assert_eq!(spec.properties["Owner"], "Me");
        assert_eq!(spec.properties["none"], "");
        assert!(!decode_request::<WireStop>(b"null\n").unwrap().kill);
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let refused = |body: &str| {
            decode_request::<WireContainerSpec>(body.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refused(""), "EOF");
        assert_eq!(refused(" \n"), "EOF");
        refused(r#"{"handle":"#);
        refused(r#"{"grace_time":"5m"}"#);
        refused(r#"{"grace_time":1.5}"#);
        refused(r#"{"limits":{"memory_limits":{"limit_in_bytes":-1}}}"#);
        refused("[]");
    }
}
