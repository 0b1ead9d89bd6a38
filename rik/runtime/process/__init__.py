"""The process runtime: pods of namespaces, with nothing but Linux and Python.

``podinit/`` is the supervisor of one pod, a process of its own; everything else here is RIK's side of it:

``layout``     where things are, named by the uid          ``launch``     making supervisors
``spec``       what a pod is, as the supervisor reads it   ``channel``    talking with it
``states``     what it says, in RIK's words                ``supervision`` asking and following them
``runtime``    the verbs                                   ``terminals``  exec and attach
``probe``      whether pods can be run here                ``usage``      what a container uses
``inventory``  what is on the host, whoever knows of it    ``demolition`` killing and removing what is left

This module imports nothing: pod supervisors start from it.
"""
