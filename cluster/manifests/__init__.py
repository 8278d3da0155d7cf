"""What starts a described cluster: KubeRay RayJob, `ray up` YAML, Slurm batch script, container recipe."""
