//! The environment of a process: which layers there are, and what is added when they are silent.
//!
//! Pure; called when an OCI specification is built. Environments carry secrets: nothing in here
//! may log or print one.

use std::collections::HashSet;

use crate::users::User;

const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Joins layers of `K=V` strings, the weakest first: the image's, the container's (not for a pea),
/// the process's. Of several entries for one name the last wins and keeps its place. Then, where no
/// entry names them: `PATH` (with the `sbin` directories only for uid 0), `USER` (as the user was
/// given, `root` if it was not), and `HOME` (also when it is there but empty, as runc does).
pub fn effective(layers: &[&[String]], user: &User) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut env: Vec<String> = layers
        .iter()
        .flat_map(|layer| layer.iter())
        .rev()
        .filter(|entry| seen.insert(name(entry)))
        .cloned()
        .collect();
    env.reverse();
    if !sets(&env, "PATH") {
        let path = if user.uid == 0 { ROOT_PATH } else { USER_PATH };
        env.push(format!("PATH={path}"));
    }
    if !sets(&env, "USER") {
        let given = match user.name_as_given.as_str() {
            "" => "root",
            given => given,
        };
        env.push(format!("USER={given}"));
    }
    env.retain(|entry| entry != "HOME=");
    if !sets(&env, "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    env
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// Whether an entry assigns the variable. (A bare name without `=` assigns nothing.)
fn sets(env: &[String], variable: &str) -> bool {
    env.iter()
        .filter_map(|entry| entry.split_once('='))
        .any(|(name, _)| name == variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, given: &str) -> User {
        User {
            uid,
            gid: uid,
            additional_gids: Vec::new(),
            home: "/home/it".into(),
            name_as_given: given.into(),
        }
    }

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_silent_environment_gets_the_defaults_of_its_user() {
        let expected = [
            format!("PATH={ROOT_PATH}"),
            "USER=root".into(),
            "HOME=/home/it".into(),
        ];
        assert_eq!(effective(&[], &user(0, "")), expected);
        let expected = [
            format!("PATH={USER_PATH}"),
            "USER=al:5".into(),
            "HOME=/home/it".into(),
        ];
        assert_eq!(effective(&[], &user(7, "al:5")), expected);
    }

    #[test]
    fn later_layers_win_and_keep_their_place() {
        let image = list(&["A=image", "PATH=/image", "HOME=/h", "USER=image"]);
        let container = list(&["B=container", "A=container", "USER=container"]);
        let process = list(&["C=1", "A=process", "C=2", "USER=process"]);
        assert_eq!(
            effective(&[&image, &container, &process], &user(0, "al")),
            list(&[
                "PATH=/image",
                "HOME=/h",
                "B=container",
                "A=process",
                "C=2",
                "USER=process"
            ])
        );
    }

    #[test]
    fn a_name_that_only_contains_path_or_user_does_not_count() {
        let env = list(&["MYPATH=x", "PATHS=y", "USERNAME=z", "X=PATH=1", "PATH"]);
        let effective = effective(&[&env], &user(1, "al"));
        assert!(effective.contains(&format!("PATH={USER_PATH}")));
        assert!(effective.contains(&"USER=al".to_owned()));
        assert_eq!(effective[..5], env);
    }

    #[test]
    fn an_empty_value_is_a_value_except_for_home() {
        let env = list(&["PATH=", "USER=", "HOME="]);
        assert_eq!(
            effective(&[&env], &user(0, "")),
            list(&["PATH=", "USER=", "HOME=/home/it"])
        );
    }
}
