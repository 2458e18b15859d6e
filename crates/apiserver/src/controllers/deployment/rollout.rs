//! How many replicas each ReplicaSet of a Deployment should have next. All functions return sizes in the order of
//! [`View::all`].

use std::cmp::Reverse;

use podwire_k8s::k8s_openapi::api::apps::v1::ReplicaSet;

use super::{View, available, replicas, revision};

fn sizes(view: &View<'_>) -> Vec<i32> {
    view.all().map(replicas).collect()
}

/// The size with which a new ReplicaSet starts.
pub(super) fn initial(view: &View<'_>) -> i32 {
    grown(view, 0)
}

/// How far the new ReplicaSet, now of size `current`, may grow: up to what is wanted, within the surge.
fn grown(view: &View<'_>, current: i32) -> i32 {
    if view.recreate() {
        return view.wanted();
    }
    let (surge, _) = view.margins();
    let total: i32 = view.all().map(replicas).sum();
    let room = (view.wanted() + surge - total).max(0);
    current + room.min(view.wanted() - current)
}

/// Old ones to nothing; the new one up once `waiting` for the old pods is over.
pub(super) fn recreate(view: &View<'_>, waiting: bool) -> Vec<i32> {
    let mut sizes: Vec<i32> = view.old.iter().map(|_| 0).collect();
    sizes.extend(view.new.map(|new| if waiting { replicas(new) } else { view.wanted() }));
    sizes
}

/// One step of a rolling update: the new ReplicaSet up as far as the surge allows; if that changes nothing, the old
/// ones down as far as availability allows.
pub(super) fn rolling(view: &View<'_>) -> Vec<i32> {
    let mut sizes = sizes(view);
    let Some(new) = view.new else { return sizes };
    let current = replicas(new);
    let next = if current >= view.wanted() { view.wanted() } else { grown(view, current) };
    if next != current {
        if let Some(last) = sizes.last_mut() {
            *last = next;
        }
        return sizes;
    }
    shrink_old(view, new, &mut sizes);
    sizes
}

fn shrink_old(view: &View<'_>, new: &ReplicaSet, sizes: &mut [i32]) {
    let (_, unavailable) = view.margins();
    let least = view.wanted() - unavailable;
    let total: i32 = sizes.iter().sum();
    // Pods of the new revision that are not available yet count as if they did not exist.
    let mut budget = total - least - (replicas(new) - available(new)).max(0);
    // Pods that are of no use go first: taking them away makes nothing worse.
    for (size, set) in sizes.iter_mut().zip(&view.old) {
        let useless = (*size - available(set)).clamp(0, budget.max(0));
        *size -= useless;
        budget -= useless;
    }
    let mut spare = (view.all().map(available).sum::<i32>() - least).min(budget).max(0);
    for size in sizes.iter_mut().take(view.old.len()) {
        let less = (*size).min(spare);
        *size -= less;
        spare -= less;
    }
}

/// `spec.replicas` has changed since the ReplicaSets were last scaled.
pub(super) fn resized(view: &View<'_>) -> bool {
    let active = view.all().filter(|set| replicas(set) > 0);
    active.filter_map(|set| revision::scaled_for(set).0).any(|desired| desired != view.wanted())
}

/// Spreads a changed number of replicas over the ReplicaSets in proportion to their sizes, so that a rollout in the
/// middle stays in the middle.
pub(super) fn proportional(view: &View<'_>) -> Vec<i32> {
    let mut next = sizes(view);
    let active: Vec<usize> = (0..next.len()).filter(|i| next[*i] > 0).collect();
    let sets: Vec<&ReplicaSet> = view.all().collect();
    match active.as_slice() {
        // Nothing runs: the newest revision is the one to scale.
        [] => {
            if let Some(last) = next.last_mut() {
                *last = view.wanted();
            }
            return next;
        }
        [only] => {
            next[*only] = view.wanted();
            return next;
        }
        _ => {}
    }
    let saturated = |set: &ReplicaSet| {
        let wanted = view.wanted();
        replicas(set) == wanted && revision::scaled_for(set).0 == Some(wanted) && available(set) == wanted
    };
    if view.new.is_some_and(saturated) {
        next.iter_mut().take(view.old.len()).for_each(|size| *size = 0);
        return next;
    }
    if view.recreate() {
        return next;
    }
    let (surge, _) = view.margins();
    let allowed = if view.wanted() > 0 { view.wanted() + surge } else { 0 };
    let to_add = allowed - next.iter().sum::<i32>();
    let mut order = active;
    // The largest takes the rounding; among equals the newest when growing, the oldest when shrinking.
    order.sort_by_key(|i| (Reverse(next[*i]), if to_add > 0 { sets.len() - i } else { *i }));
    let mut added = 0;
    for i in &order {
        let share = share(view, sets[*i], allowed);
        let left = to_add - added;
        let share = if to_add > 0 { share.clamp(0, left.max(0)) } else { share.clamp(left.min(0), 0) };
        next[*i] += share;
        added += share;
    }
    if let Some(first) = order.first() {
        next[*first] = (next[*first] + to_add - added).max(0);
    }
    next
}

/// By how much a ReplicaSet changes if it keeps its part of the whole.
fn share(view: &View<'_>, set: &ReplicaSet, allowed: i32) -> i32 {
    let size = replicas(set);
    if view.wanted() == 0 {
        return -size;
    }
    let reported = view.deployment.status.as_ref().and_then(|status| status.replicas);
    let before = revision::scaled_for(set).1.or(reported).filter(|before| *before > 0).unwrap_or(1);
    let exact = f64::from(size) * f64::from(allowed) / f64::from(before);
    #[allow(clippy::cast_possible_truncation, reason = "replica counts are far below 2^31; the cast saturates anyway")]
    let rounded = exact.round() as i32;
    rounded - size
}
