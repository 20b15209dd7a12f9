//! W3C Trace Context: which trace a request belongs to, and how a call to the outside says so.
//!
//! A correlation id is the trace id of the request that started it all, or that request's own id when it named no trace. It
//! is journaled with every event and so outlives the request; the caller's span and its `tracestate` do not, and are not
//! handed on. Nothing that a client sends may get into an outgoing header but 32 hex digits.

use sha2::{Digest, Sha256};
use ulid::Ulid;

/// `version-trace-parent-flags` of version 00; later ones may only add to it.
const BYTES: usize = 55;

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str) -> bool {
    is_lower_hex(text) && text.bytes().any(|byte| byte != b'0')
}

/// The trace id and the caller's span of a `traceparent` that keeps to the standard.
pub fn parse(header: &str) -> Option<(&str, &str)> {
    let (known, more) = header.split_at_checked(BYTES)?;
    let mut parts = known.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = [version.len(), trace.len(), parent.len(), flags.len()];
    let later = version != "00" && more.starts_with('-');
    let valid = lengths == [2, 32, 16, 2]
        && is_lower_hex(version)
        && version != "ff"
        && (more.is_empty() || later)
        && is_id(trace)
        && is_id(parent)
        && is_lower_hex(flags);
    valid.then_some((trace, parent))
}

/// The header of one call under this correlation id, with a new span. The flags leave it to the other side what it records.
pub fn traceparent(correlation: &str) -> String {
    format!("00-{}-{:016x}-00", trace_of(correlation), fastrand::u64(1..))
}

/// The trace that a correlation id stands for.
pub fn trace_of(correlation: &str) -> String {
    if correlation.len() == 32 && is_id(correlation) {
        correlation.to_owned()
    } else if let Ok(id) = Ulid::from_string(correlation)
        && id.0 > 0
    {
        format!("{:032x}", id.0)
    } else {
        Sha256::digest(correlation).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_id(header: &str) -> Option<&str> {
        parse(header).map(|(trace, _)| trace)
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn only_what_keeps_to_the_standard_names_a_trace() {
        for header in [
            "00-TRACE-00f067aa0ba902b7-01",
            "00-TRACE-00f067aa0ba902b7-00",
            "01-TRACE-00f067aa0ba902b7-01-more",
            "cc-TRACE-00f067aa0ba902b7-09",
        ] {
            assert_eq!(trace_id(&header.replace("TRACE", TRACE)), Some(TRACE), "{header}");
        }
        for header in [
            "",
            "00",
            "00-TRACE",
            "00-TRACE-00f067aa0ba902b7",
            "00-TRACE-00f067aa0ba902b7-01-more",
            "00-TRACE-00f067aa0ba902b7-01 ",
            "01-TRACE-00f067aa0ba902b7-01more",
            "ff-TRACE-00f067aa0ba902b7-01",
            "0-TRACE-00f067aa0ba902b7-011",
            "00-TRACE-0000000000000000-01",
            "00-TRACE-00F067AA0BA902B7-01",
            "00-TRACE-00f067aa0ba902b7-0x",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01x",
            "00-4bf92f3577b34da6a3ce929d0e0e473ü00f067aa0ba902b7-01xx",
        ] {
            assert_eq!(trace_id(&header.replace("TRACE", TRACE)), None, "{header}");
        }
    }

    #[test]
    fn whatever_the_correlation_is_a_call_bears_a_valid_header_of_one_trace_and_a_span_of_its_own() {
        let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for (correlation, expected) in
            [(TRACE, Some(TRACE)), (ulid, Some("01563e3ab5d3d6764c61efb99302bd5b")), ("order-7\r\nx: y", None), ("", None)]
        {
            let (first, second) = (traceparent(correlation), traceparent(correlation));
            let trace = trace_id(&first).unwrap_or_else(|| panic!("{first}"));
            assert_eq!(trace_id(&second), Some(trace));
            assert_ne!(first, second);
            assert!(expected.is_none_or(|expected| trace == expected), "{first}");
        }
    }
}
