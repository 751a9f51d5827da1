"""What Debian's kernel is told when a test or a benchmark boots it."""

COMMAND_LINE = (
    "earlyprintk=ttyS0 console=ttyS0 reboot=t panic=-1 nokaslr cryptomgr.notests acpi=off pci=off noapic "
    "nolapic nopti noreplace-smp rodata=off random.trust_cpu=on"
)
# Self-checks and tracing tables of the kernel that cost 200 M instructions and nobody looks at here
BLACKLIST = (
    " initcall_blacklist=ftrace_check_for_weak_functions,ftrace_check_sync,trace_eval_init,trace_eval_sync,"
    "tracer_init_tracefs,cubictcp_register,bpf_prog_test_run_init,bpf_kfunc_init,kfunc_init,slab_sysfs_init,"
    "blake2s_mod_init,init_kprobe_trace,init_blk_tracer,load_system_certificate_list,"
    "bpf_rstat_kfunc_init,bpf_key_sig_kfuncs_init,bpf_tcp_ca_kfunc_init"
)
# Nothing cut: what a person types who only wants a serial console, and an end when something goes wrong
DEFAULT_COMMAND_LINE = "console=ttyS0 reboot=t panic=-1"
