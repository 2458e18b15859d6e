//! Many roads to one state: write one sequence of states, run five.

/// Sequences of states that all end in the last of `states`: as written, reversed before it, with `empty` in between,
/// every state twice, and the last alone. Whatever is driven along them must give the same output at the end.
pub fn roads<S: Clone>(states: &[S], empty: &S) -> Vec<(&'static str, Vec<S>)> {
    let Some((last, before)) = states.split_last() else { return Vec::new() };
    let reversed = before.iter().rev().chain([last]).cloned().collect();
    let emptied = states.iter().flat_map(|state| [empty.clone(), state.clone()]).collect();
    let doubled = states.iter().flat_map(|state| [state.clone(), state.clone()]).collect();
    vec![
        ("as written", states.to_vec()),
        ("reversed", reversed),
        ("emptied in between", emptied),
        ("doubled", doubled),
        ("squashed", vec![last.clone()]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_road_ends_in_the_last_state() {
        let roads = roads(&[1, 2, 3], &0);
        assert_eq!(roads.len(), 5);
        assert!(roads.iter().all(|(_, road)| road.last() == Some(&3)));
        assert_eq!(roads[1].1, [2, 1, 3]);
        assert_eq!(roads[2].1, [0, 1, 0, 2, 0, 3]);
    }
}
