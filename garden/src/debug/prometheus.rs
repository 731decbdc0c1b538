//! A look in Prometheus' text form, version 0.0.4.
//!
//! The number of series does not grow with containers; one per container is there only for who asks
//! (`?containers=1`). Names are stable: dashboards are built on them. Label values are foreign text
//! and escaped as the format says.

use std::fmt::{self, Write};

use garden_peas::histogram::{BUCKETS_SECONDS, Durations};

use super::look::Look;

/// The content type of the form.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes a look down.
pub(super) fn write(look: &Look, per_container: bool) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    // Writing to a string cannot fail.
    let _ = page.all(look, per_container);
    page.0
}

struct Page(String);

impl Page {
    fn all(&mut self, look: &Look, per_container: bool) -> fmt::Result {
        self.head("garden_info", "gauge", "The release that runs.")?;
        self.line("garden_info", &[("version", look.version)], 1)?;
        self.one(
            "garden_uptime_seconds",
            "gauge",
            "Since the server was started.",
            look.uptime_seconds,
        )?;
        self.containers(look, per_container)?;
        self.requests(look)?;
        let told = "From the end of a process until its clients knew.";
        self.histogram(
            "garden_exit_told_seconds",
            told,
            &[(Vec::new(), &look.exit_told)],
        )?;
        let checks = "From the end of a check that changed something until that was told.";
        self.histogram(
            "garden_check_told_seconds",
            checks,
            &[(Vec::new(), &look.check_told)],
        )?;
        self.teardown(look)?;
        self.store(look)?;
        self.process(look)
    }

    fn containers(&mut self, look: &Look, per_container: bool) -> fmt::Result {
        let name = "garden_containers";
        self.head(name, "gauge", "Containers, by state.")?;
        for state in ["active", "stopped"] {
            let count = look
                .containers
                .iter()
                .filter(|one| one.state == state)
                .count();
            self.line(name, &[("state", state)], count)?;
        }
        let name = "garden_processes";
        self.head(name, "gauge", "Processes that run, by kind.")?;
        for (kind, pea) in [("process", false), ("pea", true)] {
            let of = |all: &[super::look::ProcessLine]| all.iter().filter(|p| p.pea == pea).count();
            let count: usize = look.containers.iter().map(|one| of(&one.processes)).sum();
            self.line(name, &[("kind", kind)], count)?;
        }
        let name = "garden_events_total";
        self.head(name, "counter", "What happened, by kind.")?;
        for (kind, count) in &look.event_counts {
            self.line(name, &[("event", kind)], count)?;
        }
        if per_container {
            let name = "garden_container_age_seconds";
            self.head(name, "gauge", "Since each container was created.")?;
            for one in &look.containers {
                let labels = [("handle", one.handle.as_str()), ("state", one.state)];
                self.line(name, &labels, one.age_ms as f64 / 1000.0)?;
            }
        }
        Ok(())
    }

    fn requests(&mut self, look: &Look) -> fmt::Result {
        self.one(
            "garden_api_connections",
            "gauge",
            "Connections to the API that are open.",
            look.connections,
        )?;
        let name = "garden_request_failures_total";
        self.head(
            name,
            "counter",
            "Requests that were answered with an error.",
        )?;
        for (route, meter) in &look.requests {
            self.line(name, &[("route", route)], meter.failures)?;
        }
        let series: Vec<_> = look
            .requests
            .iter()
            .map(|(route, meter)| (vec![("route", *route)], &meter.took))
            .collect();
        let help = "From the head of a request to its answer; of a run, until the process started.";
        self.histogram("garden_request_seconds", help, &series)
    }

    fn teardown(&mut self, look: &Look) -> fmt::Result {
        let queue = &look.teardown;
        self.one(
            "garden_teardown_depth",
            "gauge",
            "Teardown jobs that are not done.",
            queue.depth,
        )?;
        self.one(
            "garden_teardown_oldest_seconds",
            "gauge",
            "The age of the oldest teardown job; 0 without any.",
            queue.oldest_seconds.unwrap_or(0.0),
        )?;
        self.one(
            "garden_teardown_stuck",
            "gauge",
            "Jobs of which a stage does not end.",
            queue.stuck,
        )?;
        self.one(
            "garden_teardown_retrying",
            "gauge",
            "Jobs that failed and wait.",
            queue.retrying,
        )?;
        let mut all = Vec::new();
        for stage in &queue.stages {
            let durations = Durations {
                buckets: stage.buckets.clone(),
                sum_seconds: stage.sum_seconds,
                max_seconds: stage.max_seconds,
            };
            all.push((stage.stage.to_string(), durations, stage.failures));
        }
        let series: Vec<_> = all
            .iter()
            .map(|(stage, durations, _)| (vec![("stage", stage.as_str())], durations))
            .collect();
        let help = "Runs of each stage of teardown, failed ones included.";
        self.histogram("garden_teardown_stage_seconds", help, &series)?;
        let name = "garden_teardown_failures_total";
        self.head(name, "counter", "Runs of a stage that failed.")?;
        for (stage, _, failures) in &all {
            self.line(name, &[("stage", stage)], failures)?;
        }
        Ok(())
    }

    fn store(&mut self, look: &Look) -> fmt::Result {
        let store = &look.store;
        self.one(
            "garden_store_disk_bytes",
            "gauge",
            "Size of the store's file system.",
            store.disk_bytes,
        )?;
        self.one(
            "garden_store_free_bytes",
            "gauge",
            "What is free there.",
            store.free_bytes,
        )?;
        self.one(
            "garden_trash_items",
            "gauge",
            "Trees that are still to be removed.",
            store.trash_items,
        )?;
        self.one(
            "garden_trash_bytes",
            "gauge",
            "What their removal sets free, as far as known.",
            store.trash_bytes,
        )?;
        self.one(
            "garden_trash_oldest_seconds",
            "gauge",
            "How long the oldest tree waits; 0 without any.",
            store.trash_oldest_seconds.unwrap_or(0.0),
        )?;
        self.one(
            "garden_trash_failing",
            "gauge",
            "Trees that could not be removed so far.",
            store.trash_failing,
        )?;
        self.one(
            "garden_trash_stuck",
            "gauge",
            "Trees that a thread does not get on with.",
            store.trash_stuck,
        )
    }

    fn process(&mut self, look: &Look) -> fmt::Result {
        let process = &look.process;
        self.one(
            "process_resident_memory_bytes",
            "gauge",
            "Memory that the server holds.",
            process.resident_bytes,
        )?;
        self.one(
            "process_open_fds",
            "gauge",
            "Files that the server has open.",
            process.open_files,
        )?;
        self.one(
            "garden_threads",
            "gauge",
            "Threads of the server.",
            process.threads,
        )?;
        self.one(
            "garden_tasks",
            "gauge",
            "Tasks of the server's runtime.",
            process.tasks,
        )?;
        self.one(
            "garden_host_memory_bytes",
            "gauge",
            "Memory of the host.",
            process.host_bytes,
        )?;
        self.one(
            "garden_host_memory_available_bytes",
            "gauge",
            "Memory of the host that is available.",
            process.host_available_bytes,
        )
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}")
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) -> fmt::Result {
        self.head(name, kind, help)?;
        self.line(name, &[], value)
    }

    fn line(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl fmt::Display,
    ) -> fmt::Result {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            write!(self.0, "{label}=\"{}\"", escaped(text))?;
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}")
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        series: &[(Vec<(&str, &str)>, &Durations)],
    ) -> fmt::Result {
        self.head(name, "histogram", help)?;
        let (bucket, sum, count) = (
            format!("{name}_bucket"),
            format!("{name}_sum"),
            format!("{name}_count"),
        );
        for (labels, durations) in series {
            let mut below = 0_u64;
            let counts = durations.buckets.iter();
            let bounds = BUCKETS_SECONDS.iter().map(ToString::to_string);
            for (counted, bound) in counts.zip(bounds.chain(["+Inf".to_owned()])) {
                below += counted;
                let mut labels = labels.clone();
                labels.push(("le", &bound));
                self.line(&bucket, &labels, below)?;
            }
            self.line(&sum, labels, durations.sum_seconds)?;
            self.line(&count, labels, below)?;
        }
        Ok(())
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use garden_peas::histogram::Histogram;

    use super::*;

    #[test]
    fn the_form_is_prometheus() {
        let histogram = Histogram::default();
        histogram.record(std::time::Duration::from_millis(3));
        histogram.record(std::time::Duration::from_secs(500));
        let mut page = Page(String::new());
        page.histogram(
            "x_seconds",
            "Help.",
            &[(vec![("a", "q\"\\\n")], &histogram.read())],
        )
        .unwrap();
        let lines: Vec<_> = page.0.lines().collect();
        assert_eq!(
            lines[..2],
            ["# HELP x_seconds Help.", "# TYPE x_seconds histogram"]
        );
        assert!(
            lines.contains(&r#"x_seconds_bucket{a="q\"\\\n",le="0.0025"} 0"#),
            "{lines:?}"
        );
        assert!(lines.contains(&r#"x_seconds_bucket{a="q\"\\\n",le="0.005"} 1"#));
        assert!(lines.contains(&r#"x_seconds_bucket{a="q\"\\\n",le="+Inf"} 2"#));
        assert!(lines.contains(&r#"x_seconds_count{a="q\"\\\n"} 2"#));
    }
}
