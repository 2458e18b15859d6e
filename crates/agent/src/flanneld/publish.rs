//! What this node tells the others: annotations and the NetworkUnavailable condition.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use podwire_k8s::{
    k8s_openapi::{
        api::core::v1::{Node, NodeCondition},
        apimachinery::pkg::apis::meta::v1::Time,
        jiff::Timestamp,
    },
    kube::{
        Api,
        api::{Patch, PatchParams},
    },
};
use serde_json::{Value, json};

/// How long to wait for the API server: events queue up meanwhile.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes `annotations` and, if `available`, the condition NetworkUnavailable=False; returns the Node as it is then.
///
/// Both go in one patch of the `status` subresource, which is all that flannel's role allows. An API server that keeps
/// annotations out of there gets a patch of the Node itself.
pub(super) async fn publish(
    nodes: &Api<Node>,
    name: &str,
    annotations: &BTreeMap<String, String>,
    available: bool,
) -> anyhow::Result<Node> {
    let parameters = PatchParams::default();
    let requests = async {
        let patch = status_patch(annotations, available.then(Timestamp::now));
        let node = nodes.patch_status(name, &parameters, &Patch::Strategic(patch)).await?;
        let kept = node.metadata.annotations.as_ref();
        if annotations.iter().all(|(key, value)| kept.and_then(|kept| kept.get(key)) == Some(value)) {
            return Ok(node);
        }
        nodes.patch(name, &parameters, &Patch::Merge(json!({ "metadata": { "annotations": annotations } }))).await
    };
    let answer = tokio::time::timeout(TIMEOUT, requests).await;
    answer
        .with_context(|| format!("no answer to a patch of node {name} within {TIMEOUT:?}"))?
        .context(format!("patching node {name}"))
}

/// The patch; with a condition when `available_since` is given.
fn status_patch(annotations: &BTreeMap<String, String>, available_since: Option<Timestamp>) -> Value {
    let condition = |now: Timestamp| NodeCondition {
        type_: "NetworkUnavailable".to_owned(),
        status: "False".to_owned(),
        reason: Some("FlannelIsUp".to_owned()),
        message: Some("Flannel is running on this node".to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let mut patch = json!({ "metadata": { "annotations": annotations } });
    if let Some(now) = available_since {
        patch["status"] = json!({ "conditions": [condition(now)] });
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_is_what_the_api_expects() {
        let annotations = BTreeMap::from([("flannel.alpha.coreos.com/backend-type".to_owned(), "vxlan".to_owned())]);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let patch = status_patch(&annotations, Some(now));
        assert_eq!(patch["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"], "vxlan");
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["type"], "NetworkUnavailable");
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["reason"], "FlannelIsUp");
        assert_eq!(condition["lastHeartbeatTime"], "2027-01-15T08:00:00Z");
        assert_eq!(status_patch(&annotations, None).get("status"), None);
    }
}
