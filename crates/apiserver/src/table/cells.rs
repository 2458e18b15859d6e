//! Cells that several kinds share.

use podwire_k8s::k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    object::{items, now, text},
    selector::Labels,
};

/// What stands for nothing.
pub(super) const NONE: &str = "<none>";

/// The text, or `<none>`.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// How long ago the object was created.
pub(super) fn age(object: &Value) -> Value {
    since(text(object, "/metadata/creationTimestamp")).into()
}

/// How long ago a time was, as `kubectl` says it.
pub(super) fn since(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => duration(now().as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A time span in at most two units: `5s`, `2m5s`, `10m`, `3h12m`, `2d4h`, `9d`, `2y30d`.
pub(super) fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        s if s < -1 => "<invalid>".to_owned(),
        s if s < 0 => "0s".to_owned(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// Names and images of a pod template's containers.
pub(super) fn containers(object: &Value) -> [Value; 2] {
    ["/name", "/image"].map(|field| {
        let all = items(object, "/spec/template/spec/containers").iter().map(|c| text(c, field));
        all.collect::<Vec<_>>().join(",").into()
    })
}

/// A workload's selector.
pub(super) fn selector(object: &Value) -> Value {
    or_none(&Labels::of_object(&object["spec"]["selector"]).unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_as_kubectl_tells_them() {
        for (seconds, told) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 720, "3h12m"),
            (9 * 3600, "9h"),
            (2 * 86400 + 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
        ] {
            assert_eq!(duration(seconds), told, "{seconds}");
        }
        assert_eq!(since(""), "<unknown>");
    }
}
