"""What of long tests is left out of `make test`: CI runs all of them.

The tables name tests that took two seconds or more, or rows that took half a second or more, of an
idle machine's processors, and whose subject another everyday test has as well, or one that changes
seldom break: the same file from the same sources, the pages of the handbook, loads. A test that is
fast, is the only one of its subject, or mostly waits, stays. More than 400 lines, since it is one
table.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING

from .combinations import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

LONG: dict[str, tuple[str, ...]] = {
    "tests/build/test_build.py": (
        "test_other_sources_have_another_build_id",
        "test_carries_pyroute2_for_the_command_line",
        "test_a_second_build_leaves_the_file_alone",
        "test_the_same_sources_give_the_same_file",
        "test_a_cache_that_somebody_changed_is_not_used",
    ),
    "tests/build/test_copies.py": (
        "test_installing_over_copies",
        "test_each_is_the_plugin_of_its_name",
        "test_a_copy_installs_itself",
    ),
    "tests/build/test_install.py": (
        "test_a_second_time_changes_nothing",
        "test_modes_do_not_depend_on_the_umask",
        "test_another_projects_whereabouts_is_replaced_on_request",
        "test_two_installs_at_once",
        "test_reports_for_people",
        "test_links_that_lead_to_themselves_come_back",
        "test_the_server_s_units_go_with_the_plugins",
        "test_a_unit_for_dhcp_that_was_there_stays",
        "test_a_link_for_a_shell",
        "test_a_link_that_was_replaced_since_stays",
        "test_a_link_that_cannot_be_made_is_only_a_warning",
        "test_says_what_else_it_can_do",
        "test_out_of_another_root",
        "test_a_root_with_a_python_of_its_own",
        "test_a_directory_that_is_a_link_within_the_root",
        "test_a_directory_of_programs_that_leads_out_of_the_root",
        "test_an_install_that_fails_leaves_the_one_before",
        "test_uninstall_leaves_what_others_put_there_since",
        "test_an_archive_that_another_python_compiled",
        "test_a_python_that_lacks_what_taking_the_bytecode_needs",
        "test_no_link_for_a_directory_that_is_not_the_system_s",
        "test_a_manifest_of_another_form",
        "test_units",
        "test_a_link_is_never_made_over_something_else",
    ),
    "tests/build/test_overwritten.py": (
        "test_doctor_names_what_is_another_project_s",
        "test_doctor_sees_another_build",
    ),
    "tests/build/test_standins_pythons.py": ("test_as_the_real_modules",),
    "tests/build/test_start.py": (
        "test_a_damaged_tree_gives_an_error_object",
        "test_client_only",
    ),
    "tests/build/test_trust.py": ("test_the_lock_keeps_another_install_out",),
    "tests/build/test_windows.py": ("test_the_launcher_is_reproducible",),
    "tests/netns/test_cli.py": (
        "test_on_a_terminal",
        "test_differs_from_nothing_with_the_go_plugins",
    ),
    "tests/netns/test_cli_conform.py": (
        "test_faults_are_seen",
        "test_loopback_conforms",
        "test_plugins_conform",
    ),
    "tests/netns/test_cli_no_networks.py": (
        "test_nothing_is_there",
        "test_a_file_in_place_of_the_directory",
        "test_what_is_no_file_is_not_waited_for",
    ),
    "tests/netns/test_cli_owners.py": (
        "test_what_is_not_there",
        "test_without_all_of_these_the_device_note_says_who",
    ),
    "tests/netns/test_cli_show.py": (
        "test_names_that_a_terminal_would_obey",
        "test_colour_only_where_it_is_wanted",
        "test_ps_knows_what_a_person_attached",
        "test_ports_without_rules_and_of_the_dead",
        "test_ipam_of_all_networks",
    ),
    "tests/netns/test_cluster_etcd.py": (
        "TestContract::test_a_large_listing_is_complete_and_of_one_moment",
        "test_a_partition_between_node_and_store",
        "test_a_member_that_is_started_again",
        "test_a_store_that_was_restored_has_another_identity_for_every_node",
        "test_user_and_password",
        "test_the_leader_is_killed_while_nodes_claim",
        "test_a_member_that_is_cut_off_from_the_others_is_not_believed",
        "test_a_member_that_hangs_is_passed_over",
    ),
    "tests/netns/test_cluster_http.py": (
        "test_a_read_goes_to_the_next_endpoint_and_a_change_never",
        "test_a_deadline_holds_for_all_endpoints_together",
    ),
    "tests/netns/test_concurrency.py": ("test_a_new_bridge_for_many_containers",),
    "tests/netns/test_dhcp.py": (
        "test_expired_and_leased_again",
        "test_refused_after_a_restart",
        "test_expired_while_no_daemon_ran",
        "test_a_lease_of_no_time_does_not_keep_the_daemon_busy",
        "test_as_the_go_plugin",
    ),
    "tests/netns/test_differential.py": (
        "test_bridge_promisc_with_gateway",
        "test_bridge_routes_and_dns",
        "test_bridge_delete_without_namespace",
        "test_ptp_static_routes_and_dns",
        "test_bridge_two_containers",
        "test_bridge_in_each_version",
        "test_bridge_static",
        "test_bridge_two_interfaces",
        "test_bridge_mac_from_arguments",
        "test_ptp_masquerade",
        "test_portmap_two_containers",
        "test_go_is_like_go",
        "test_bridge_masquerade",
        "test_bridge_mac",
        "test_loopback",
        "test_bandwidth",
        "test_bridge_layer_2",
    ),
    "tests/netns/test_every_command.py": (
        "test_no_escapes_where_none_are_wanted",
        "test_every_format_of_every_command",
        "test_a_stdout_or_directory_of_no_use",
        "test_success_is_a_document",
    ),
    "tests/netns/test_examples.py": ("test_the_example_plugin",),
    "tests/netns/test_executor.py": ("test_a_hundred_lost_children_leak_nothing",),
    "tests/netns/test_firewalld.py": (
        "test_zones",
        "test_switching_over",
        "test_isolation_is_iptables",
        "test_reload_by_hand",
    ),
    "tests/netns/test_flat.py": (
        "test_no_verb_costs_more_with_many_containers",
        "test_an_interface_costs_no_more_with_many_containers",
        "test_iptables_is_asked_as_often_with_many_containers",
        "test_gc_deletes_all_in_one_request",
        "test_what_a_killed_gc_leaves_the_next_one_removes",
        "test_gc_of_ports_asks_as_often_with_many_networks",
    ),
    "tests/netns/test_golden.py": ("test_texts",),
    "tests/netns/test_host_device.py": ("test_killed",),
    "tests/netns/test_lost_answers.py": (
        "test_every_answer_lost_once",
        "test_a_question_that_fails_is_not_answered_no",
    ),
    "tests/netns/test_migrate.py": ("test_killed_anywhere",),
    "tests/netns/test_network.py": (
        "test_rm_says_what_ended_containers_have_left",
        "test_two_at_once",
    ),
    "tests/netns/test_portmap.py": ("test_a_thousand_ports_are_no_more_rules",),
    "tests/netns/test_portmap_index.py": (
        "test_an_old_table_keeps_its_promises",
        "test_of_two_who_want_a_port_one_gets_it",
    ),
    "tests/netns/test_probe.py": (
        "test_a_failure_that_a_person_sees",
        "test_macvlan_has_no_way_to_its_node",
        "test_loopback_only",
        "test_a_forward_chain_that_drops",
        "test_iptables_that_drops",
        "test_a_packet_filter_before_the_uplink",
        "test_hairpin_mode_that_is_off",
        "test_ports_that_are_not_for_containers",
        "test_isolated_containers",
        "test_nothing_is_sent_beyond_the_node",
        "test_what_the_runtime_would_give_is_given_to_one",
        "test_a_hangup_that_the_caller_ignores_ends_nothing",
        "test_another_test_that_runs_is_left_alone",
        "test_each_case_is_broken_by_its_sabotage",
        "test_after_a_kill_gc_sweeps",
        "test_what_its_own_add_sets_where_nobody_is_attached",
        "test_what_its_own_add_mends_is_said",
        "test_after_a_kill_the_next_one_sweeps",
        "test_dns_servers",
        "test_an_mtu_above_that_of_the_way_out",
    ),
    "tests/netns/test_record_log.py": ("test_requests_at_the_same_time_have_whole_lines",),
    "tests/netns/test_record_metrics.py": (
        "test_hostile_scrapers_hold_up_nobody",
        "test_an_address_in_use_is_told_and_tried_again",
        "test_an_observer_that_is_killed_comes_again",
    ),
    "tests/netns/test_record_traces.py": (
        "test_a_collector_that_is_not_well_delays_nobody",
        "test_a_collector_that_hangs_delays_nobody",
        "test_an_observer_that_is_killed",
    ),
    "tests/netns/test_reference_go.py": ("test_masquerade",),
    "tests/netns/test_reference_page.py": ("test_the_page_is_true",),
    "tests/netns/test_server.py": (
        "test_an_upgrade_under_load_loses_no_add",
        "test_a_second_server_beside_one_that_hangs",
        "test_a_client_of_another_build",
        "test_requests_leave_nothing",
    ),
    "tests/netns/test_server_faults.py": (
        "test_workers_that_are_killed_again_and_again",
        "test_a_socket_that_was_removed",
        "test_the_namespace_can_be_unmounted_at_once",
        "test_status_for_another_user_says_that_it_needs_root",
        "test_a_status_client_that_hangs_up",
        "test_a_child_s_own_process_id_is_no_proof",
        "test_any_mounts_serves_any_root",
        "test_a_supervisor_that_is_stopped_and_continued",
        "test_a_fork_that_fails",
        "test_another_mount_of_the_same_root_is_declined",
    ),
    "tests/netns/test_status.py": (
        "test_what_a_routed_pair_lacks",
        "test_a_full_range",
        "test_rules_that_were_flushed",
    ),
    "tests/netns/test_sysctl_file.py": ("test_another_installation_keeps_it",),
    "tests/netns/test_sysdump.py": (
        "test_a_tool_that_hangs_costs_its_part",
        "test_odd_files_cost_nothing_but_themselves",
        "test_what_is_in_it",
        "test_on_a_terminal",
        "test_a_node_without_tools_and_proc",
        "test_addresses_and_names_are_replaced_and_can_still_be_reasoned_with",
        "test_not_root",
    ),
    "tests/netns/test_trace.py": (
        "test_plugins_of_others",
        "test_wrong_usage",
        "test_through_a_server",
    ),
    "tests/netns/test_troubleshooting.py": ("test_firewalld_reloads",),
    "tests/netns/test_tuning.py": ("test_gc_waits_for_the_lock_of_add_and_del",),
    "tests/netns/test_uninstall.py": (
        "test_refused_in_one_line",
        "test_forced",
        "test_names_the_published_ports_that_others_do_not_find",
        "test_names_published_ports_of_a_container_that_has_ended",
        "test_what_cannot_be_found_out_is_no_obstacle_with_force",
        "test_what_the_go_plugins_detach_leaves_no_notes",
        "test_a_device_in_a_container_is_an_attachment",
        "test_of_a_dead_container_nothing_has_to_be_deleted",
        "test_what_the_reference_made_is_no_reason",
        "test_what_the_plugins_of_another_directory_made_is_no_reason",
        "test_where_nothing_is_installed_nothing_is_refused",
        "test_an_image_has_no_containers",
        "test_plugins_that_are_put_back_cannot_take_over_everything",
        "test_plugins_that_are_put_back_take_over",
    ),
    "tests/netns/test_vxlan.py": ("test_many_at_once",),
    "tests/netns/test_writing_a_plugin.py": ("test_label_is_served_like_the_others",),
    "tests/unit/test_pure_imports.py": (
        "test_the_same_heap_without_standins",
        "test_the_same_heap",
        "test_a_rehearsal_leaves_the_same_everywhere",
    ),
    "tests/unit/test_which_run.py": (
        "test_a_run_through_a_server_takes_what_goes_through_one",
        "test_the_lab_takes_what_the_machine_cannot",
        "test_what_the_lab_lacks_too_is_left_to_debians_kernel",
    ),
}

# The row that is run every day.
ONE_ROW: dict[str, dict[str, str]] = {
    "tests/build/test_install.py": {
        "test_a_full_file_system": "64",
        "test_a_link_that_leads_out_of_the_root": "True-opt",
    },
    "tests/build/test_overwritten.py": {
        "test_doctor_sees_that_no_plugin_can_start": "missing-it is missing",
    },
    "tests/build/test_start.py": {
        "test_with_every_python": "/usr/bin/python3.11",
    },
    "tests/build/test_trust.py": {
        "test_another_user_cannot_hold_the_lock": ".",
    },
    "tests/build/test_ways.py": {
        "TestLimits::test_limits": "installed-ulimit -n-VERSION",
        "TestLimits::test_a_configuration_that_takes_more_memory_than_there_is": "installed",
    },
    "tests/netns/test_bad_input.py": {
        "test_namespaces": "bridge",
    },
    "tests/netns/test_bandwidth.py": {
        "test_failed_add_inside_leaves_nothing": "ingress",
        "test_subnets": "unshapedSubnets",
    },
    "tests/netns/test_bridge.py": {
        "test_duplicate_address_detection": "False",
    },
    "tests/netns/test_cli.py": {
        "test_life_of_an_attachment": "dual",
    },
    "tests/netns/test_cli_owners.py": {
        "test_what_a_runtime_attached": "ours-netns",
        "test_without_cache_the_reservation_says_who": "ours",
        "test_gc_deletes_what_is_dead_and_nothing_else": "ours",
        "test_a_path_that_is_not_seen_is_no_proof": "ours",
    },
    "tests/netns/test_cli_show.py": {
        "test_a_node_without_anything": "ls",
        "test_not_root": "ls",
        "test_completion": "add s",
    },
    "tests/netns/test_completion_shells.py": {
        "test_tab": "bash",
    },
    "tests/netns/test_dhcp.py": {
        "test_versions": "0.1.0",
        "test_leases_survive_the_daemon": "kill",
        "test_a_gone_container_is_forgotten": "link",
        "test_end_to_end": "bridge",
    },
    "tests/netns/test_differential.py": {
        "test_a_difference_is_found": "mtu-",
        "test_bridge_layer_3": "isDefaultGateway-dual",
        "test_ptp": "dual",
        "test_portmap": "{}-v4",
        "test_host_local": "dual",
        "test_tuning": "nothing",
        "test_bandwidth_refuses": "{'ingressRate': 8000}",
        "test_firewall": "{}-0.4.0",
    },
    "tests/netns/test_doctor.py": {
        "test_rules_that_were_flushed": "iptables",
        "test_what_cannot_be_looked_at_is_not_all_right": "no /proc",
    },
    "tests/netns/test_doctor_findings.py": {
        "test_found_and_mended": "bridge down",
    },
    "tests/netns/test_executor.py": {
        "test_large_values": "0",
    },
    "tests/netns/test_firewall.py": {
        "test_again_with_another_address": "iptables",
        "test_a_changed_policy_replaces_the_bridges_old_one": "iptables",
        "test_gc": "iptables",
        "test_switching_over": "ours-go",
        "test_rules_come_back": "iptables-nft",
    },
    "tests/netns/test_firewall_packets.py": {
        "test_only_with_the_plugin": "iptables",
        "test_the_administrators_chain_comes_first": "iptables",
        "test_isolated_without_br_netfilter": "iptables",
    },
    "tests/netns/test_flannel.py": {
        "test_two_containers": "dual",
    },
    "tests/netns/test_host_device.py": {
        "test_with_addresses": "dual",
    },
    "tests/netns/test_iptables_netlink.py": {
        "test_as_the_tool_writes_it": "firewall-ipv4",
        "test_any_values": "ipv4",
        "test_without_a_fork": "bridge",
    },
    "tests/netns/test_liveness.py": {
        "test_an_add_without_a_del_before_takes_the_place_of_the_dead_one": "bridge",
    },
    "tests/netns/test_loopback.py": {
        "test_without_a_namespace": "0.2.0",
    },
    "tests/netns/test_macvlan.py": {
        "TestContract::test_addresses_and_routes": "dual",
        "test_two_containers_and_a_peer": "bridge-True-dual",
        "test_host_shim": "dual",
    },
    "tests/netns/test_macvtap.py": {
        "TestContract::test_addresses_and_routes": "dual",
    },
    "tests/netns/test_masked_boot.py": {
        "test_nothing_is_taken_for_an_earlier_boots": "11111111-2222-3333-4444-555555555555\\n",
    },
    "tests/netns/test_masquerade.py": {
        "test_concurrent": "iptables",
        "test_packets": "IPv4-iptables",
        "test_two_interfaces_that_replace_their_addresses": "iptables-bridge",
    },
    "tests/netns/test_migrate.py": {
        "test_the_go_plugin_cleans_up": "{}",
        "test_our_del_needs_no_way_back": "form0",
        "test_firewall": "",
        "test_masquerading_by_sets": "bridge",
    },
    "tests/netns/test_more_keys.py": {
        "test_no_default_route": "bridge",
        "test_accept_ra_and_autoconf": "False-bridge",
        "test_mtu_of_no_uplink": "bridge",
        "test_mtu_that_the_uplink_has_no_longer": "bridge",
    },
    "tests/netns/test_multipath.py": {
        "test_one_route": "False-v4-host-local",
    },
    "tests/netns/test_network.py": {
        "test_containers_of_a_new_network_talk": "bridge",
        "test_a_master_that_cannot_be_one": "macvlan",
    },
    "tests/netns/test_not_blocked.py": {
        "test_a_stopped_add_is_not_in_the_way_of_another_network": "portmap, nftables-flock",
    },
    "tests/netns/test_pairs.py": {
        "test_del_leaves_another_containers_pair": "bridge",
        "test_an_add_takes_the_place_of_a_pair_whose_namespace_has_ended": "bridge",
        "test_a_failed_add_removes_the_bridge_that_it_made": "new",
    },
    "tests/netns/test_plugin_names.py": {
        "test_by_exec": "as_links",
        "test_through_a_server": "as_links",
    },
    "tests/netns/test_portmap.py": {
        "test_published_everywhere": "nftables",
        "test_only_what_is_for_the_node_is_captured": "nftables",
        "test_without_snat": "nftables",
    },
    "tests/netns/test_portmap_index.py": {
        "test_many_ports_of_one_container": "17",
    },
    "tests/netns/test_portmap_life.py": {
        "test_a_taken_port_names_its_owner": "nftables",
        "test_a_container_in_several_networks": "order0-nftables",
        "test_a_sender_that_never_stops": "198.51.100.1-nftables",
        "test_check_and_reload": "flushed",
        "test_gc": "nftables",
    },
    "tests/netns/test_portmap_localhost.py": {
        "test_only_with_guards": "nftables",
    },
    "tests/netns/test_probe.py": {
        "test_a_bridge_that_works": "dual-nftables",
        "test_ptp_that_works": "dual",
        "test_what_is_broken_is_found": "DEL fails",
        "test_a_range_that_is_full": "1",
        "test_a_signal_ends_it_and_everything_goes": "waits for packets-15",
    },
    "tests/netns/test_ptp.py": {
        "test_life": "0.1.0",
        "test_life_of_one_family": "v4",
        "test_del_cleans_up_without_the_namespace": "empty",
    },
    "tests/netns/test_record_broken.py": {
        "test_the_file_of_the_node": "exec-torn",
        "test_the_environment": "exec-no URL",
    },
    "tests/netns/test_record_log.py": {
        "test_a_full_disk_fails_nothing": "exec",
        "test_a_rotated_file_is_left": "exec",
    },
    "tests/netns/test_record_metrics.py": {
        "test_only_metrics_are_there": "GET-/metrics?x=1-200",
    },
    "tests/netns/test_record_traces.py": {
        "test_what_the_caller_says": "None-True",
        "test_samplers": "always_off--0-0",
    },
    "tests/netns/test_reference_go.py": {
        "test_add_check_delete": "dual-bridge",
    },
    "tests/netns/test_refusals.py": {
        "test_all_at_once_while_somebody_flushes": "masquerade",
    },
    "tests/netns/test_reload.py": {
        "test_masquerading_comes_back": "bridge-nftables",
    },
    "tests/netns/test_sbr.py": {
        "test_a_failed_add_is_undone": "plain",
        "test_replies_leave_where_the_question_came_in": "plain",
    },
    "tests/netns/test_served_result.py": {
        "test_a_result_that_cannot_be_written_is_undone": "full",
        "test_a_signal_while_the_result_is_written_is_too_late": "15",
    },
    "tests/netns/test_slaac.py": {
        "test_what_was_missing": "None-no router advertisement arrived: a router was asked for",
    },
    "tests/netns/test_status.py": {
        "test_a_full_range_whichever_build_is_installed": "all of Go",
        "test_a_bridge_that_containers_have_lost": "deleted",
        "test_what_attached_containers_lack": "ours-bridge down",
    },
    "tests/netns/test_sysctl_file.py": {
        "test_uninstall_removes_it": "True",
    },
    "tests/netns/test_sysdump.py": {
        "test_a_signal_leaves_no_half_file": "2",
    },
    "tests/netns/test_tap.py": {
        "TestContract::test_addresses_and_routes": "dual",
    },
    "tests/netns/test_trace.py": {
        "test_a_signal": "2",
    },
    "tests/netns/test_troubleshooting.py": {
        "test_symptom": "no addresses",
    },
    "tests/netns/test_tuning.py": {
        "test_a_shared_sysctl_is_put_back_by_the_last_attachment": "net1 net2 net3",
    },
    "tests/netns/test_watch.py": {
        "test_what_becomes_of_its_file": "another build",
    },
    "tests/netns/test_writing_a_plugin.py": {
        "test_label": "beside the installed file",
    },
    "tests/unit/test_host_local_crash.py": {
        "test_concurrent_adds_are_unique": "16-12",
        "test_killed_add": "False",
    },
}

# Of tests with more than two rows that each take a twentieth of a second or more, the last row is
# run every day, which is mostly that of both families, or of the newest version. On the
# self-contained file, whose start takes less, there is time for the first one, too.
FEW_ROWS: dict[str, tuple[str, ...]] = {
    "tests/build/test_client.py": ("test_the_exit_code_is_the_server_s",),
    "tests/build/test_install.py": ("test_something_else_where_the_directory_should_be",),
    "tests/build/test_overwritten.py": (
        "test_only_the_plugin_that_was_overwritten_is_theirs",
        "test_says_what_is_wrong_with_cni",
    ),
    "tests/build/test_start.py": (
        "test_with_an_empty_environment",
        "test_with_an_old_python",
    ),
    "tests/build/test_ways.py": (
        "TestByDescriptor::test_argv_0_is_the_name",
        "TestByDescriptor::test_the_command_line",
        "TestStreams::test_a_stderr_that_takes_nothing",
    ),
    "tests/netns/test_bad_input.py": (
        "test_bridge_args",
        "test_bridge_keys",
        "test_environment",
        "test_ipam_types",
        "test_malformed_json",
        "test_network_names",
        "test_prev_results",
        "test_routes",
        "test_static_addresses",
        "test_versions",
    ),
    "tests/netns/test_bandwidth.py": (
        "test_bad_input",
        "test_check",
        "test_delete_needs_nothing",
        "test_host_interface_is_not_listed",
        "test_life",
        "test_somebody_elses_qdisc_stays",
        "test_switching_over",
        "test_what_is_limited",
    ),
    "tests/netns/test_bridge.py": (
        "test_a_gateway_from_the_wire_is_checked",
        "test_address_conflict",
        "test_an_address_that_is_used_again_loses_no_packet",
        "test_check_finds_damage",
        "test_containers_talk",
        "test_default_gateway",
        "test_default_gateway_that_is_not_ipams",
        "test_del_cleans_up_without_the_namespace",
        "test_dns",
        "test_layer_2",
        "test_life",
        "test_macspoofchk_refuses_a_mac_that_is_in_use",
        "test_other_containers_get_no_more_than_the_announcement",
        "test_unusual_interface_names",
    ),
    "tests/netns/test_capabilities.py": ("test_without_sys_admin",),
    "tests/netns/test_cli_owners.py": ("test_not_root",),
    "tests/netns/test_conflicts.py": ("test_host_local_refuses_what_makes_no_sense",),
    "tests/netns/test_del_gets_through.py": (
        "test_chained",
        "test_main",
        "test_without_add",
    ),
    "tests/netns/test_device_master.py": (
        "test_a_master_in_the_configuration_counts_more",
        "test_check_misses_the_device",
        "test_the_device_is_the_master",
        "test_without_a_link_nothing_is_made",
    ),
    "tests/netns/test_dhcp.py": (
        "test_bad_flags",
        "test_bad_requests",
    ),
    "tests/netns/test_differential.py": (
        "test_bridge_bad_input_has_the_same_code",
        "test_host_local_bad_ranges",
        "test_host_local_dynamic_configuration",
        "test_host_local_requested_address",
        "test_sbr",
        "test_static",
        "test_static_dynamic_configuration",
    ),
    "tests/netns/test_documented.py": (
        "test_configurations",
        "test_command_lines",
    ),
    "tests/netns/test_empty_bridge.py": ("test_it_stays_while_it_is_used",),
    "tests/netns/test_examples.py": (
        "test_the_configurations_are_valid",
        "test_the_configurations_work",
    ),
    "tests/netns/test_exit_codes.py": ("test_an_exit_code",),
    "tests/netns/test_firewall.py": (
        "test_a_broken_configuration_leaves_no_rules",
        "test_a_policy_needs_a_bridge",
        "test_an_admin_chain_that_would_be_something_else",
        "test_iptables_unless_firewalld_runs",
    ),
    "tests/netns/test_flannel.py": ("test_every_version",),
    "tests/netns/test_harness.py": ("test_snapshot_sees_a_change",),
    "tests/netns/test_host_device.py": (
        "test_bad_input_changes_nothing",
        "test_bad_sysfs",
        "test_by_mac",
        "test_by_sysfs",
        "test_every_version",
        "test_failed_add_puts_the_device_back",
        "test_the_container_does_not_decide_what_moves",
        "test_two_selectors_for_one_device",
        "test_user_space_driver",
        "test_without_ipam",
    ),
    "tests/netns/test_kernel_names.py": ("test_an_interface_name_of_prev_result",),
    "tests/netns/test_link_group.py": ("test_gc_deletes_many_in_one_request",),
    "tests/netns/test_long_names.py": (
        "test_long_names",
        "test_who_has_a_port_is_named_in_full",
    ),
    "tests/netns/test_loopback.py": (
        "test_gc_and_status_do_nothing",
        "test_life",
    ),
    "tests/netns/test_macvlan.py": (
        "TestContract::test_delete_takes_the_link_that_add_made",
        "TestContract::test_versions",
        "test_bad_input_changes_nothing",
        "test_layer_2",
        "test_mac",
        "test_modes",
        "test_mtu",
        "test_only_the_configurations_dns",
    ),
    "tests/netns/test_macvtap.py": (
        "TestContract::test_delete_takes_the_link_that_add_made",
        "TestContract::test_versions",
        "test_refused",
    ),
    "tests/netns/test_masquerade.py": (
        "test_again_is_the_same",
        "test_four_containers",
        "test_gc",
        "test_plugins",
    ),
    "tests/netns/test_messages.py": (
        "test_a_kernel_without_that_kind_of_link",
        "test_a_plugin_that_is_not_there",
    ),
    "tests/netns/test_more_keys.py": (
        "test_host_interface_name_that_no_link_can_have",
        "test_masquerading_of_some_families",
        "test_mtu_of_the_uplink",
        "test_mtu_that_is_none",
    ),
    "tests/netns/test_netfilter_wait.py": (
        "test_a_del_leaves_its_socket",
        "test_an_add_deletes_nothing",
        "test_where_it_cannot_be_left",
    ),
    "tests/netns/test_netkit.py": ("test_without_netkit_veth_is_used",),
    "tests/netns/test_network.py": (
        "test_what_is_written_is_valid",
        "test_wrong_usage",
    ),
    "tests/netns/test_old_kernel.py": ("test_the_end_of_a_process",),
    "tests/netns/test_outbound.py": (
        "test_addresses_that_cannot_be",
        "test_an_address_that_another_container_has_by_now",
        "test_gc",
        "test_one_family_alone",
        "test_packets_leave_under_the_addresses",
        "test_the_last_wins",
    ),
    "tests/netns/test_pairs.py": ("test_del_takes_the_pair_that_add_made",),
    "tests/netns/test_plan.py": (
        "test_a_type_that_names_no_plugin",
        "test_examples_can_be_told",
    ),
    "tests/netns/test_plugin_names.py": ("test_a_copy_of_another_build_is_a_program_of_its_own",),
    "tests/netns/test_portmap_index.py": (
        "test_conditions_that_are_none",
        "test_killed_after_nft_has_made_the_chains",
        "test_killed_between_the_chains_and_the_elements",
        "test_what_an_older_build_adds_beside_the_index",
    ),
    "tests/netns/test_portmap_life.py": (
        "test_a_broken_configuration_leaves_no_rules",
        "test_bad_input",
        "test_each_version",
        "test_many_flows_are_forgotten_together",
        "test_status",
        "test_what_fails_leaves_nothing",
    ),
    "tests/netns/test_ptp.py": (
        "test_addresses",
        "test_an_address_that_is_used_again_loses_no_packet",
        "test_check_finds_damage",
        "test_check_finds_damage_on_the_node",
        "test_containers_talk_through_the_node",
    ),
    "tests/netns/test_record_log.py": (
        "test_a_log_that_cannot_be_written_fails_nothing",
        "test_an_error_has_the_line_that_the_runtime_sees",
    ),
    "tests/netns/test_record_metrics.py": ("test_an_address_that_is_none",),
    "tests/netns/test_reload.py": ("test_a_del_that_cannot_read_what_was_kept_says_so",),
    "tests/netns/test_route_override.py": (
        "test_changes",
        "test_check_sees_differences",
        "test_failures_leave_routes_as_they_were",
        "test_versions",
    ),
    "tests/netns/test_sample.py": (
        "test_bad_input",
        "test_life",
    ),
    "tests/netns/test_sbr.py": (
        "test_bad_input_changes_nothing",
        "test_delete_without_prev_result",
        "test_static_gateways",
        "test_versions",
    ),
    "tests/netns/test_server.py": (
        "test_a_signal_that_comes_with_the_descriptors",
        "test_descriptors_that_do_not_fit",
        "test_the_reply_is_the_same",
    ),
    "tests/netns/test_server_faults.py": (
        "test_who_stops_halfway_keeps_nobody_from_the_workers",
        "test_a_client_with_fewer_capabilities_runs_by_exec",
    ),
    "tests/netns/test_slaac.py": (
        "test_behind",
        "test_refused",
        "test_versions",
    ),
    "tests/netns/test_stale_netns.py": (
        "test_a_namespace_that_is_held_otherwise",
        "test_a_path_that_could_not_be_looked_at",
        "test_a_process_that_could_not_be_looked_at",
        "test_address_and_rules_go",
        "test_an_add_after_a_namespace_that_only_a_descriptor_holds",
        "test_an_add_while_the_link_of_an_earlier_one_is_elsewhere",
        "test_chained_plugins",
        "test_nothing_is_done_in_the_nodes_own_namespace",
    ),
    "tests/netns/test_tap.py": (
        "test_bad_input_changes_nothing",
        "test_dns",
        "TestContract::test_delete_takes_the_link_that_add_made",
        "TestContract::test_versions",
        "test_device",
        "test_layer_2",
        "test_owner_and_group_0",
        "test_what_is_no_note_is_told_and_ignored",
    ),
    "tests/netns/test_tuning.py": (
        "test_a_backup_that_cannot_be_read_is_not_none",
        "test_bad_features",
        "test_bad_input_changes_nothing",
        "test_delete_afterwards",
        "test_delete_needs_nothing_of_the_configuration",
        "test_duplicate_keys",
        "test_gc_takes_out_the_users_that_are_gone",
        "test_interface_names_with_dots",
        "test_life",
        "test_sources_of_the_mac",
        "test_white_space_around_a_value_does_not_belong_to_it",
    ),
    "tests/netns/test_uplink.py": (
        "test_names_that_cannot_be",
        "test_what_cannot_be_an_uplink",
    ),
    "tests/netns/test_validate_node.py": ("test_a_loopback_is_no_master",),
    "tests/netns/test_vxlan.py": ("test_refusals",),
    "tests/unit/test_cli_runtime.py": (
        "test_a_configuration_that_is_nested_deeply",
        "test_a_stdout_of_no_use",
        "test_completion",
        "test_completion_script",
        "test_errors_are_on_stderr",
        "test_help",
        "test_netns_is_needed",
        "test_other_verbs_print_nothing",
        "test_wrong_usage",
    ),
    "tests/unit/test_cluster_directory.py": (
        "test_a_fault_at_any_call_leaves_each_change_whole_or_not_made",
    ),
    "tests/unit/test_cluster_failures.py": ("test_a_server_renews_in_time",),
    "tests/unit/test_cluster_simulation.py": ("test_a_cluster_for_some_hours",),
    "tests/unit/test_deploy.py": ("test_image_and_base_are_named_by_digest",),
    "tests/unit/test_describe.py": ("test_schemas_are_schemas",),
    "tests/unit/test_dispatch.py": ("test_the_answer_is_always_an_answer",),
    "tests/unit/test_protocol_delegate.py": (
        "test_a_child_that_reads_or_writes_much_does_not_block",
    ),
    "tests/unit/test_record.py": (
        "test_what_is_wrong_with_the_nodes_file_is_said_and_no_request_fails_for_it",
    ),
    "tests/unit/test_standins.py": (
        "test_as_the_real_modules",
        "test_unexpected_error_is_tried_without",
    ),
}


def long_ones(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items that are left out of everyday runs.

    Of a test whose row of ONE_ROW is not among its rows, no row is left out.
    """
    long: list[pytest.Item] = []
    rows: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        path, _, rest = item.nodeid.partition("::")
        name = rest.partition("[")[0]
        if name in LONG.get(path, ()):
            long.append(item)
        elif name in ONE_ROW.get(path, {}):
            rows[path, name].append(item)
    for (path, name), alike in rows.items():
        others = [each for each in alike if "-".join(rows_of(each)) != ONE_ROW[path][name]]
        if len(others) < len(alike):
            long += others
    return long


def many_rows(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items that are left out since others are rows of the same test of FEW_ROWS."""
    has_time = os.environ.get("CNI_TEST_FILES") == "self-contained"
    rows: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        path, _, rest = item.nodeid.partition("::")
        name = rest.partition("[")[0]
        if name in FEW_ROWS.get(path, ()):
            rows[path, name].append(item)
    left_out = []
    for alike in rows.values():
        left_out += alike[1:-1] if has_time else alike[:-1]
    return left_out
