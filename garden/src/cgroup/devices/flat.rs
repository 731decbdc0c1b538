//! Rules as cgroup v1 takes them: a list of what is allowed, where order says nothing.
//!
//! Called by the module above for `devices.allow`. Pure. The kernel can only take back exactly what
//! it was given, so denials are worked in here, and one that takes a part of something wider is
//! refused: it would not hold.

use crate::devices::{DeviceKind, DeviceRule};

/// Allowances that come to the same, none for all kinds at once; or the denial that has none.
pub(super) fn flatten(rules: &[DeviceRule]) -> Result<Vec<DeviceRule>, DeviceRule> {
    let mut list: Vec<DeviceRule> = Vec::new();
    for rule in rules.iter().flat_map(by_kind) {
        if !rule.allow {
            for held in &mut list {
                if rule.covers(held) {
                    held.access = held.access.without(rule.access);
                } else if rule.meets(held) && takes_of(&rule, held) {
                    return Err(rule);
                }
            }
            list.retain(|held| !held.access.is_none());
            continue;
        }
        match list.iter_mut().find(|held| is_about_the_same(held, &rule)) {
            Some(held) => held.access = held.access.with(rule.access),
            None => list.push(rule),
        }
    }
    // Who asks for several permissions at once is answered by one entry, never by two together.
    let wider = list.clone();
    for held in &mut list {
        let own = *held;
        let covering = wider.iter().filter(|other| other.covers(&own));
        held.access = covering.fold(own.access, |all, other| all.with(other.access));
    }
    Ok(list)
}

fn by_kind(rule: &DeviceRule) -> Vec<DeviceRule> {
    let of = |kind| DeviceRule { kind, ..*rule };
    match rule.kind {
        DeviceKind::All => vec![of(DeviceKind::Character), of(DeviceKind::Block)],
        kind => vec![of(kind)],
    }
}

fn is_about_the_same(one: &DeviceRule, other: &DeviceRule) -> bool {
    one.covers(other) && other.covers(one)
}

fn takes_of(denial: &DeviceRule, held: &DeviceRule) -> bool {
    held.access.without(denial.access) != held.access
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(rules: &[&str]) -> Result<Vec<String>, String> {
        let rules: Vec<DeviceRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        match flatten(&rules) {
            Ok(list) => Ok(list.iter().map(ToString::to_string).collect()),
            Err(rule) => Err(rule.to_string()),
        }
    }

    #[test]
    fn denials_are_worked_in() {
        assert_eq!(flat(&["a", "deny a"]).unwrap(), [""; 0]);
        assert_eq!(
            flat(&["a", "deny b *:* w"]).unwrap(),
            ["c *:* rwm", "b *:* rm"]
        );
        assert_eq!(
            flat(&["c 1:3 rw", "deny c 1:* w", "c 1:5 rw"]).unwrap(),
            ["c 1:3 r", "c 1:5 rw"]
        );
        // What is narrower than something held, and would not hold.
        assert_eq!(
            flat(&["c *:* m", "deny c 1:3 m"]),
            Err("deny c 1:3 m".into())
        );
        assert_eq!(
            flat(&["c 1:* rw", "deny c *:3 w"]),
            Err("deny c *:3 w".into())
        );
        // Which is no matter where nothing is held of it.
        assert_eq!(flat(&["c *:* m", "deny c 1:3 w"]).unwrap(), ["c *:* m"]);
    }

    #[test]
    fn one_entry_answers_for_all_that_is_allowed() {
        assert_eq!(
            flat(&["c *:* m", "c 1:3 r", "c 1:3 w"]).unwrap(),
            ["c *:* m", "c 1:3 rwm"]
        );
    }
}
