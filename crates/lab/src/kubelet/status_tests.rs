use super::*;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn ended(code: i32) -> Ended {
    Ended { code, message: None, reason: None, id: "r1".into(), started_at: at(1), finished_at: at(2) }
}

/// A record in one letter: `w`aiting, `r`unning, `R`unning and ready, `b`ack-off after a failure, `0` and `1` exit
/// codes.
fn record(letter: char) -> Record {
    let base = Record::waiting("ContainerCreating");
    match letter {
        'w' => base,
        'r' => Record { state: State::Running { id: "r1".into(), since: at(1) }, started: true, ..base },
        'R' => Record { ready: true, ..record('r') },
        'b' => Record {
            state: State::Waiting { reason: "CrashLoopBackOff", message: None },
            last: Some(ended(1)),
            restarts: 1,
            ..base
        },
        digit => Record { state: State::Ended(ended(digit.to_digit(10).unwrap().cast_signed())), ..base },
    }
}

fn pod(policy: &str, init: &str, main: &str) -> (Pod, Known) {
    let containers = |prefix: &str, letters: &str| -> Vec<serde_json::Value> {
        (0..letters.len()).map(|i| json!({"name": format!("{prefix}{i}"), "image": "myapp:v1"})).collect()
    };
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "d", "generation": 3},
        "spec": {"restartPolicy": policy, "initContainers": containers("i", init), "containers": containers("c", main)},
    }))
    .unwrap();
    let mut known = Known::new(&pod, vec!["172.25.2.1".into()], at(0));
    for (prefix, letters) in [("i", init), ("c", main)] {
        for (index, letter) in letters.chars().enumerate() {
            known.containers.insert(format!("{prefix}{index}"), record(letter));
        }
    }
    known.sandbox_ready = true;
    known.pod_ips = vec!["10.244.0.5".into()];
    (pod, known)
}

#[test]
fn phases() {
    let rows = [
        ("Always", "", "w", "Pending"),
        ("Always", "", "r", "Running"),
        ("Always", "", "rw", "Pending"),
        ("Always", "", "rb", "Running"),
        ("Always", "", "b", "Running"),
        ("Always", "", "0", "Running"),
        ("OnFailure", "", "0", "Succeeded"),
        ("OnFailure", "", "b", "Running"),
        ("OnFailure", "", "0r", "Running"),
        ("Never", "", "0", "Succeeded"),
        ("Never", "", "01", "Failed"),
        ("Never", "", "1r", "Running"),
        ("Always", "r", "w", "Pending"),
        ("Always", "1", "w", "Pending"),
        ("Never", "1", "w", "Failed"),
        ("Never", "0w", "w", "Pending"),
        ("Always", "00", "R", "Running"),
    ];
    for (policy, init, main, expected) in rows {
        let (pod, known) = pod(policy, init, main);
        let status = known.status(&pod, at(9));
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} init={init} main={main}");
    }
}

fn condition(status: &PodStatus, kind: &str) -> String {
    let condition = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap();
    [Some(&condition.status), condition.reason.as_ref(), condition.message.as_ref()]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("|")
}

#[test]
fn conditions() {
    let unready = "False|ContainersNotReady|containers with unready status: ";
    let rows = [
        ("Always", "", "R", "True", "True".to_owned()),
        ("Always", "", "Rr", "True", format!("{unready}[c1]")),
        (
            "Always",
            "0r",
            "ww",
            "False|ContainersNotInitialized|containers with incomplete status: [i1]",
            format!("{unready}[c0 c1]"),
        ),
        ("Never", "", "0", "True|PodCompleted", "False|PodCompleted".to_owned()),
        ("Never", "", "1", "True", "False|PodFailed".to_owned()),
    ];
    for (policy, init, main, initialized, ready) in rows {
        let (pod, known) = pod(policy, init, main);
        let status = known.status(&pod, at(9));
        assert_eq!(condition(&status, "Initialized"), initialized, "{policy} {init} {main}");
        assert_eq!(condition(&status, "Ready"), ready, "{policy} {init} {main}");
        assert_eq!(condition(&status, "ContainersReady"), ready, "{policy} {init} {main}");
        assert_eq!(condition(&status, "PodScheduled"), "True");
        assert_eq!(condition(&status, "PodReadyToStartContainers"), "True");
    }
}

#[test]
fn transition_times_change_with_the_status_only_and_foreign_conditions_stay() {
    let (mut pod, mut known) = pod("Always", "", "r");
    let mut first = known.status(&pod, at(10));
    first.conditions.as_mut().unwrap().push(PodCondition {
        type_: "example.org/gate".into(),
        status: "True".into(),
        ..Default::default()
    });
    pod.status = Some(first);
    assert_eq!(pod.status, Some(known.status(&pod, at(20))), "nothing changed, so nothing moves");
    known.containers.insert("c0".into(), record('R'));
    let second = known.status(&pod, at(30));
    let since = |kind: &str| {
        let condition = second.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap();
        condition.last_transition_time.as_ref().unwrap().0
    };
    assert_eq!(since("Ready"), at(30));
    assert_eq!(since("Initialized"), at(10));
    assert_eq!(condition(&second, "example.org/gate"), "True");
}

#[test]
fn readiness_gates_hold_ready_back() {
    let (mut pod, known) = pod("Always", "", "R");
    pod.spec.as_mut().unwrap().readiness_gates =
        Some(vec![k8s_openapi::api::core::v1::PodReadinessGate { condition_type: "example.org/gate".into() }]);
    let status = known.status(&pod, at(9));
    assert_eq!(condition(&status, "ContainersReady"), "True");
    assert!(condition(&status, "Ready").starts_with("False|ReadinessGatesNotReady|"));
}

#[test]
fn container_statuses_tell_now_and_before() {
    let (pod, mut known) = pod("Always", "", "b");
    known.containers.get_mut("c0").unwrap().image_id = "built-in/myapp:v1".into();
    let status = known.status(&pod, at(9));
    assert_eq!(
        serde_json::to_value(&status.container_statuses.unwrap()[0]).unwrap(),
        json!({
            "name": "c0", "image": "myapp:v1", "imageID": "built-in/myapp:v1", "containerID": "podwire://r1",
            "ready": false, "started": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {
                "exitCode": 1, "reason": "Error", "containerID": "podwire://r1",
                "startedAt": "2027-01-15T08:00:01Z", "finishedAt": "2027-01-15T08:00:02Z",
            }},
        })
    );
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.observed_generation, Some(3));
}

#[test]
fn a_rejected_pod_has_failed_with_the_reason() {
    let (pod, mut known) = pod("Always", "", "w");
    known.rejected = Some(("UnsupportedPodSpec", "hostPID is not supported".into()));
    let status = known.status(&pod, at(9));
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("UnsupportedPodSpec"));
    assert_eq!(status.message.as_deref(), Some("hostPID is not supported"));
}
